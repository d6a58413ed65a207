"""COCO's metric on a part of an annotation file.

Not imported with the package, because it imports mmdet: detection configs name it in ``custom_imports``.
"""

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS


@METRICS.register_module()
class SubsetCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` over the images that were predicted.

    mmdet's own takes all images of ``ann_file`` and counts those without a prediction as missed, so that ``indices`` in
    a data set silently lower the result; :func:`bootmae.engine.guards.check_metric` refuses that.
    """

    takes_parts = True

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.img_ids = sorted({truth['img_id'] for truth, _ in results})
        return super().compute_metrics(results)
