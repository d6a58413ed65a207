"""Checks the range of the values in the images of a data set: the same in training and ``tools/verify_data.py``."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile

from ..text import count_of
from .findings import DARK_IMAGES, NARROW_SET, FileFinding, settle
from .reading import ReadCrop
from .subsets import leaves, spread
from .tar import is_tar_path, read_tar_path, readable
from .value_range import ValueRange, value_range

NUM_SPOT_CHECKS = 16  # images of a data set whose values training and evaluation check first


def judge_ranges(ranges: Sequence[tuple[str, ValueRange]]) -> list[FileFinding]:
    """Judge a data set by the values of its images: a fault if most are read as almost nothing.

    Args:
        ranges: Path and values of each image that was read.
    """
    findings = []
    narrow = [(path, values) for path, values in ranges if values.narrow]
    if 2 * len(narrow) > len(ranges):
        path, values = narrow[0]
        detail = (
            f'{values}, and so or similarly in {len(narrow):,} of {count_of(len(ranges), "image")}: scale the values '
            'to the whole range of their type (12 bits in 16: multiply by 16), or convert the files to 8 bits'
        )
        findings.append(FileFinding(NARROW_SET, path, detail))
    if dark := [(path, values) for path, values in ranges if values.dark]:
        path, values = dark[0]
        detail = (
            f'{values}, and so or similarly in {len(dark):,} of {count_of(len(ranges), "image")}: almost black; are '
            'they masks, or class numbers?'
        )
        findings.append(FileFinding(DARK_IMAGES, path, detail))
    return findings


def check_values(dataset: Any) -> None:
    """Read some images of a data set, evenly spread, and judge their values.

    Data sets pass whose pipeline reads images in another way than OpenCV does, or has them in memory.

    Raises:
        DataFault: If most images would be read as almost nothing.
    """
    for leaf in leaves(dataset):
        ranges = [(readable(path), values) for path in _some_paths(leaf) if (values := _read_range(path))]
        settle(judge_ranges(ranges))


def _some_paths(leaf: Any) -> Iterable[str]:
    steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', ())
    if not any(isinstance(step, (LoadImageFromFile, ReadCrop)) for step in steps):
        return []
    infos = (leaf.get_data_info(int(index)) for index in spread(len(leaf), NUM_SPOT_CHECKS))
    return [info['img_path'] for info in infos if info.get('img_path')]


def _read_range(path: str) -> ValueRange | None:
    """Return the values of an image; None if it cannot be read, which is for others to say."""
    try:
        if is_tar_path(path):
            data = read_tar_path(path)
        elif os.path.isfile(path):
            with open(path, 'rb') as file:
                data = file.read()
        else:
            return None
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except (OSError, ValueError, cv2.error):
        return None
    return None if decoded is None else value_range(data, decoded)
