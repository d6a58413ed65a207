"""mmseg's IoU metric, which also keeps the result of each class.

Segmentation configs import this module through ``custom_imports``; the package does not, because it imports mmseg.
"""

from typing import Any

import numpy as np
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from .by_class import ClassResults


@METRICS.register_module()
class IoUByClass(IoUMetric):
    """mmseg's ``IoUMetric``, which also keeps the per-class numbers that it prints, such as IoU and Acc."""

    by_class: ClassResults = {}

    def total_area_to_metrics(self, *areas: Any) -> dict[str, np.ndarray]:
        found = super().total_area_to_metrics(*areas)
        classes = self.dataset_meta['classes']
        self.by_class = {
            name: dict(zip(classes, (100 * values).tolist()))
            for name, values in found.items()
            if np.ndim(values)  # aAcc is a single number
        }
        return found
