"""Display names of methods and the order in which they are shown; names that several rooms share."""

import re
from collections.abc import Iterable
from pathlib import Path

METHOD_NAMES = {'untrained': 'Untrained', 'mae': 'MAE', 'bootmae': 'BootMAE'}
FURTHER_NAMES = {'supervised': 'Supervised', 'simmim': 'SimMIM'}
PAPER_DATA = ('ImageNet-1k', 'ADE20K', 'COCO')  # of the published numbers
MODEL = re.compile(r'[a-z0-9]+_vit([a-z])(?=_|\.py)')  # bootmae_vitb in configs/cls/bootmae_vitb_finetune.py
CLASSES_FILE = 'classes.json'  # per-class results in a run's log directory: by metric and class, in percent
# Key in the log: metric in result rows, and factor to percent
LOGGED_METRICS = {
    'accuracy/top1': ('accuracy', 1.0),
    'mIoU': ('mIoU', 1.0),
    'coco/bbox_mAP': ('box AP', 100.0),
    'coco/segm_mAP': ('mask AP', 100.0),
}
RAW_WEIGHTS = '_origin'  # mmpretrain's suffix for results of the raw weights where the EMA's are the headline


def method_name(method: str) -> str:
    """Display name; a note stays behind it: ``mae (1600 epochs)`` becomes ``MAE (1600 epochs)``."""
    first, space, rest = method.partition(' ')
    return (METHOD_NAMES | FURTHER_NAMES).get(first, first) + space + rest


def ordered_methods(methods: Iterable[str]) -> list[str]:
    """The methods in display order: untrained, MAE, BootMAE, then the others by first appearance."""
    found = dict.fromkeys(methods)
    return [name for name in METHOD_NAMES if name in found] + [name for name in found if name not in METHOD_NAMES]


def model_of(config: str) -> str:
    """Model name of a full-size config, such as ``bootmae_vitb``; empty for other configs."""
    found = MODEL.match(Path(config).name)
    return found[0] if found else ''
