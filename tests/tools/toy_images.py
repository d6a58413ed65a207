"""A small folder of labeled images, a config for it, and calls of tools on them."""

import itertools
from pathlib import Path

import cv2
import numpy as np
from calling import call_tool

REPOSITORY = Path(__file__).resolve().parents[2]
FINETUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
COUNT = itertools.count()
CONFIG = """
_base_ = {base!r}
pictures = dict(_delete_=True, type='ImageFiles', roots={roots!r}, labels='folder', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')])
train_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(pictures, split='train'))
val_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(pictures, split='val', test_mode=True))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
auto_scale_lr = dict(base_batch_size=8)
model = dict(head=dict(num_classes=2))
data_preprocessor = dict(num_classes=2)
"""


def draw(path: Path, low: int = 0, high: int = 255, dtype: type = np.uint8) -> Path:
    """Write an image of noise between two values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(COUNT)).integers(low, high, (40, 48, 3), dtype=dtype, endpoint=True)
    pixels[0, 0], pixels[0, 1] = low, high
    plain = path.with_suffix('.png' if path.suffix == '.png' else '.jpg')
    cv2.imwrite(str(plain), pixels)
    return plain.rename(path)


def make_folder(root: Path) -> Path:
    """Write train/ and val/ with two classes, eight and two images each."""
    for split, count in (('train', 4), ('val', 1)):
        for name in ('cat', 'dog'):
            for number in range(count):
                draw(root / split / name / f'{split}_{number}.png')
    return root


def write_config(path: Path, folder: Path) -> Path:
    """Write a config that trains on the images of :func:`make_folder`."""
    path.write_text(CONFIG.format(base=str(FINETUNE), roots=str(folder)))
    return path


def call(tool: str, *args, options: tuple[str, ...] = ()) -> int:
    return call_tool(tool, *args, '--cfg-options', f'experiment_name=images_{next(COUNT)}', *options)
