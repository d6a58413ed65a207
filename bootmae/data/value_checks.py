"""Checks the range of the values in the images of a data set: the same in training and ``tools/verify_data.py``."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile

from ..text import count_of
from .channels import ADVICE, ChannelFormat, LoadChannels, advice_for, format_of
from .findings import CLIPPED_SET, DARK_IMAGES, NARROW_SET, UNREADABLE, DataFault, FileFinding, settle
from .reading import ReadCrop, decode
from .subsets import leaves, spread
from .tar import is_tar_path, read_tar_path, readable
from .value_range import ValueRange, channel_range, value_range

MOST = 0.5  # share of the values of an image
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
        remedy = (
            'scale the values to the whole range of their type (12 bits in 16: multiply by 16), or convert the files '
            'to 8 bits'
            if values.clipped is None
            else f'set image_channels.ranges to the range of the values ({ADVICE})'
        )
        detail = f'{values}, and so or similarly in {len(narrow):,} of {count_of(len(ranges), "image")}: {remedy}'
        findings.append(FileFinding(NARROW_SET, path, detail))
    clipped = [(path, values) for path, values in ranges if (values.clipped or 0) > MOST]
    if 2 * len(clipped) > len(ranges):
        path, values = clipped[0]
        detail = (
            f'{100 * values.clipped:.0f} % of its {values.kind} values, {values.low:,} to {values.high:,}, lie outside '
            f'of image_channels.ranges, and so or similarly in {len(clipped):,} of {count_of(len(ranges), "image")}: '
            f'set them to the range of the values ({ADVICE})'
        )
        findings.append(FileFinding(CLIPPED_SET, path, detail))
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

    Data sets pass whose pipeline reads images in another way, or has them in memory.

    Raises:
        DataFault: If most images would be read as almost nothing, or no image fits the setting ``image_channels``.
    """
    for leaf in leaves(dataset):
        channels = format_of(leaf)
        ranges, errors, wrong_setting = read_ranges(_some_paths(leaf), channels)
        if (channels is not None or wrong_setting) and errors and not ranges:
            raise DataFault(errors)
        settle(judge_ranges(ranges))


def read_ranges(
    paths: Iterable[str], channels: ChannelFormat | None = None
) -> tuple[list[tuple[str, ValueRange]], list[FileFinding], bool]:
    """Return path and values of the images that can be read, the others, and if ``image_channels`` would read some."""
    ranges, errors, wrong_setting = [], [], False
    for path in paths:
        data = b''
        try:
            if data := _content(path):
                ranges.append((readable(path), _range_of(data, channels)))
        except (OSError, ValueError) as error:  # a broken file is for others to report
            errors.append(FileFinding(UNREADABLE, readable(path), str(error)))
            wrong_setting = wrong_setting or bool(advice_for(data))
    return ranges, errors, wrong_setting


def _some_paths(leaf: Any) -> Iterable[str]:
    steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', ())
    if not any(isinstance(step, (LoadImageFromFile, LoadChannels, ReadCrop)) for step in steps):
        return []
    infos = (leaf.get_data_info(int(index)) for index in spread(len(leaf), NUM_SPOT_CHECKS))
    return [info['img_path'] for info in infos if info.get('img_path')]


def _content(path: str) -> bytes:
    if is_tar_path(path):
        return read_tar_path(path)
    return Path(path).read_bytes() if os.path.isfile(path) else b''


def _range_of(data: bytes, channels: ChannelFormat | None) -> ValueRange:
    if channels is not None:
        return channel_range(channels, data)[0]
    return value_range(data, decode(data))
