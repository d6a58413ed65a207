"""The full-size segmentation and detection configs."""

import functools
from pathlib import Path

from mmengine.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]
SEG, DET = (
    {path.stem: path for path in sorted((REPOSITORY / 'configs' / task).glob('*_vit[bl]_*.py'))}
    for task in ('seg', 'det')
)
FILES = SEG | DET


@functools.cache
def load(name: str) -> Config:
    return Config.fromfile(FILES[name])
