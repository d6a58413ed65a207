"""mmseg's metric that keeps the number of each class.

Not imported with the package, because it imports mmseg: segmentation configs name it in ``custom_imports``.
"""

from typing import Any

import numpy as np
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from .by_class import keep_classes


@METRICS.register_module()
class IoUByClass(IoUMetric):
    """mmseg's ``IoUMetric``, which also keeps what it prints of each class, such as IoU and Acc."""

    def total_area_to_metrics(self, *areas: Any) -> dict[str, np.ndarray]:
        found = super().total_area_to_metrics(*areas)
        classes = self.dataset_meta['classes']
        keep_classes(
            {name: dict(zip(classes, (100 * values).tolist())) for name, values in found.items() if np.ndim(values)}
        )  # aAcc is one number
        return found
