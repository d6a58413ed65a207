"""Metrics that also keep the result of each class; :class:`ClassResultsHook` writes these beside the log.

Per-class results are an attribute of the metric, ``by_class``, because mmengine's loggers and mmpretrain's ``EMAHook``
accept only scalars in the returned dict, and 150 more scalars in each line of the log would help nobody.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from mmpretrain.evaluation import Accuracy
from mmpretrain.registry import METRICS

ClassResults = dict[str, dict[str, float]]  # by metric and class, in percent


def take_class_results(metrics: Iterable) -> ClassResults:
    """Per-class results of the last evaluation, rounded, without classes that have none (NaN); clears the metrics'."""
    found = {}
    for metric in metrics:
        for name, values in getattr(metric, 'by_class', {}).items():
            found[name] = {key: round(float(value), 4) for key, value in values.items() if math.isfinite(value)}
        if hasattr(metric, 'by_class'):
            metric.by_class = {}
    return found


@METRICS.register_module()
class AccuracyByClass(Accuracy):
    """mmpretrain's ``Accuracy``, which also keeps the top-1 accuracy of each class."""

    by_class: ClassResults = {}

    def compute_metrics(self, results: list) -> dict[str, float]:
        truth = torch.cat([result['gt_label'] for result in results])
        predicted = torch.cat([top_label(result) for result in results])
        count = int(max(truth.max(), predicted.max())) + 1
        images = torch.bincount(truth, minlength=count)
        correct = torch.bincount(truth[predicted == truth], minlength=count)
        names = class_names(self.dataset_meta, count)
        self.by_class = {'accuracy': dict(zip(names, (100 * correct.double() / images).tolist()))}
        return super().compute_metrics(results)


def top_label(result: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Predicted class of one image, shape (1, ): the largest score, or the stored label."""
    return result['pred_score'].topk(1).indices if 'pred_score' in result else result['pred_label'].reshape(1)


def class_names(meta: Mapping | None, count: int) -> Sequence[str]:
    """Class names in label order; the label itself where the data set has no name for it."""
    names = (meta or {}).get('classes') or ()
    return [names[label] if label < len(names) else str(label) for label in range(count)]
