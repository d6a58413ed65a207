"""COCO metrics that keep the AP of each class and accept a subset of the annotated images.

Detection configs import this module through ``custom_imports``; the package does not, because it imports mmdet.
"""

import math

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS

from .by_class import ClassResults

NAMES = {'bbox': 'box AP', 'segm': 'mask AP'}
PRECISION = '{}_precision'  # mmdet's key of a class


@METRICS.register_module()
class CocoByClass(CocoMetric):
    """mmdet's ``CocoMetric``, which also keeps the AP of each class.

    mmdet's ``classwise`` adds one scalar per class, under the same name for boxes and masks, so that masks overwrite
    boxes. This class evaluates boxes and masks one after the other and removes the extra scalars. If a detector finds
    nothing at all, mmdet's metric has no result and this one an AP of 0.
    """

    by_class: ClassResults = {}

    def compute_metrics(self, results: list) -> dict[str, float]:
        requested, classwise, found, by_class = self.metrics, self.classwise, {}, {}
        try:
            self.classwise = True
            for self.metrics in ([metric] for metric in requested):
                one = super().compute_metrics(results) or self._without_predictions()
                name = NAMES.get(self.metrics[0], self.metrics[0])
                by_class[name] = {
                    kind: 100 * one.pop(PRECISION.format(kind))
                    for kind in self.dataset_meta['classes']
                    if PRECISION.format(kind) in one
                }
                found |= one
        finally:
            self.metrics, self.classwise = requested, classwise
        self.by_class = {name: values for name, values in by_class.items() if values}
        return found

    def _without_predictions(self) -> dict[str, float]:
        """The AP of an evaluation without a single prediction; without a value where nothing is annotated."""
        (metric,) = self.metrics
        if metric not in NAMES or self.format_only:
            return {}
        found = {}
        for category in self._coco_api.loadCats(self.cat_ids):
            annotated = self._coco_api.getAnnIds(self.img_ids, category['id'], iscrowd=False)
            found[PRECISION.format(category['name'])] = 0.0 if annotated else math.nan
        return found | {f'{metric}_mAP': 0.0 if 0.0 in found.values() else -1.0}


@METRICS.register_module()
class SubsetCocoMetric(CocoByClass):
    """COCO metric over the predicted images only.

    mmdet's metric counts every image of ``ann_file`` without a prediction as missed, so ``indices`` in a data set would
    silently lower the result; :func:`bootmae.config.checks.check_metric` rejects that combination.
    """

    takes_parts = True

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.img_ids = sorted({truth['img_id'] for truth, _ in results})
        return super().compute_metrics(results)
