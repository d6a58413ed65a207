"""COCO's metric, with the number of each class, and on a part of an annotation file.

Not imported with the package, because it imports mmdet: detection configs name it in ``custom_imports``.
"""

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS

from .by_class import keep_classes

NAMES = {'bbox': 'box AP', 'segm': 'mask AP'}
PRECISION = '{}_precision'  # mmdet's key of a class


@METRICS.register_module()
class CocoByClass(CocoMetric):
    """mmdet's ``CocoMetric``, which also keeps the AP of each class.

    mmdet's ``classwise`` returns them as so many further scalars, under names that boxes and masks share: the later
    replace the earlier. Here boxes and masks are asked for one after the other, and the scalars stay as they are.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        asked, classwise, found, classes = self.metrics, self.classwise, {}, {}
        try:
            self.classwise = True
            for self.metrics in ([metric] for metric in asked):
                one = super().compute_metrics(results)
                name = NAMES.get(self.metrics[0], self.metrics[0])
                classes[name] = {
                    kind: 100 * one.pop(PRECISION.format(kind))
                    for kind in self.dataset_meta['classes']
                    if PRECISION.format(kind) in one
                }
                found |= one
        finally:
            self.metrics, self.classwise = asked, classwise
        keep_classes({name: values for name, values in classes.items() if values})
        return found


@METRICS.register_module()
class SubsetCocoMetric(CocoByClass):
    """COCO's metric over the images that were predicted.

    mmdet's own takes all images of ``ann_file`` and counts those without a prediction as missed, so that ``indices`` in
    a data set silently lower the result; :func:`bootmae.config.checks.check_metric` refuses that.
    """

    takes_parts = True

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.img_ids = sorted({truth['img_id'] for truth, _ in results})
        return super().compute_metrics(results)
