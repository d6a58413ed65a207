"""Results that are none: an mIoU of NaN, or an AP of -1, which mean that there was nothing to evaluate."""

import logging
import math
from numbers import Real

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

MAIN = ('bbox_mAP', 'segm_mAP', 'mIoU')  # a run without these has no result


@HOOKS.register_module()
class NoResultHook(Hook):
    """Takes metrics without a value out of the results, and raises an error if a main metric has none."""

    priority = 'HIGHEST'  # before RuntimeInfoHook, from which loggers take their values

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        drop_missing(metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        drop_missing(metrics)


def drop_missing(metrics: dict[str, float] | None) -> None:
    """Delete metrics that are NaN, and average precisions and recalls of -1.

    Raises:
        ValueError: if one of :data:`MAIN` has no value.
    """
    missing = [name for name, value in (metrics or {}).items() if is_missing(name, value)]
    if main := [name for name in missing if name.split('/')[-1] in MAIN]:
        raise ValueError(
            f'{", ".join(main)} cannot be computed: the annotations of the evaluated images have no instance or pixel '
            'of any class: check ann_file, the class names and the masks (tools/verify_data.py CONFIG)'
        )
    if missing:
        text = f'without a result, since nothing of the kind is annotated: {", ".join(missing)}'
        print_log(text, logger='current', level=logging.INFO)
    for name in missing:
        del metrics[name]


def is_missing(name: str, value: object) -> bool:
    """Whether a metric has no value; only COCO's metrics use -1 for that."""
    if not isinstance(value, Real):
        return False
    return math.isnan(value) or (value == -1 and any(part in name for part in ('mAP', 'AR@', 'AR_')))
