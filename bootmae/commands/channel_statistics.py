"""Statistics of each channel of a data set, printed as the setting ``image_channels`` of a config.

Shape letters: C channels, K sampled pixels of an image.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from mmengine import fileio
from tqdm import tqdm

from .. import registry  # noqa: F401
from ..config.channels import SETTINGS, as_lists
from ..config.load import load_config, names_config
from ..config.steps import require
from ..data.channels import ENDING, ChannelFormat, decode
from ..data.images import ImageFiles
from ..data.lists import folder_of_list
from ..data.roots import ARCHIVE
from ..data.scan import EXTENSIONS
from ..data.subsets import leaves, spread
from ..data.tar import readable
from ..text import count_of
from .verify_sources import build_dataset

SAMPLED = 4_000_000  # pixels of the whole data set from which percentiles are taken
OF_IMAGE = 4096  # pixels of one image at most
DIGITS = 5  # significant digits of the printed numbers
SHOWN = 3  # unreadable files in the report


@dataclass
class Statistics:
    """Statistics of each channel; all arrays are (C,) float64.

    Attributes:
        images: Number of images that were read.
        kinds: Types of their values.
        low, high: Smallest and largest value.
        tails: Values at the two percentiles (2, C).
        channels: The format with the ranges that become 0 and 255.
        mean, std: Mean and standard deviation after scaling to 0..255.
        unreadable: Messages about files that cannot be read.
    """

    images: int
    kinds: list[str]
    low: np.ndarray
    high: np.ndarray
    tails: np.ndarray
    channels: ChannelFormat
    mean: np.ndarray
    std: np.ndarray
    unreadable: list[str]

    def setting(self) -> str:
        """Return the setting for a config, as Python."""
        values = {key: getattr(self.channels, key) for key in SETTINGS}
        if pairs := values['ranges']:
            pairs = tuple(tuple(map(_short, pair)) for pair in pairs)
            values['ranges'] = pairs[0] if len(set(pairs)) == 1 else pairs
        values |= dict(mean=tuple(map(_short, self.mean)), std=tuple(map(_short, self.std)))
        shown = {key: value for key, value in values.items() if value is not None and (key, value) != ('axis', 'last')}
        lines = [f'    {key}={as_lists(value)!r}' for key, value in shown.items()]
        return 'image_channels = dict(\n' + ',\n'.join(lines) + ')'

    def table(self, percentiles: Sequence[float]) -> str:
        """Return the values of each channel as they are in the files."""
        heads = ('channel', 'min', *(f'{percent:g} %' for percent in percentiles), 'max')
        names = range(self.channels.number) if self.channels.select is None else self.channels.select
        rows = [
            (str(name), *(f'{_short(value):,g}' for value in values))
            for name, *values in zip(names, self.low, *self.tails, self.high)
        ]
        return '\n'.join('  '.join(f'{cell:>12}' for cell in row) for row in (heads, *rows))


def measure(
    paths: Sequence[str], channels: ChannelFormat, percentiles: tuple[float, float] = (0.1, 99.9), workers: int = 0
) -> Statistics:
    """Measure a data set in one pass if the ranges of its values are given, otherwise in two.

    Args:
        paths: Image files.
        channels: How to read them. Without ranges and percentiles of its own, the ranges are the percentiles of the
            data set.
        percentiles: The lower and the upper percentile, in percent.
        workers: Number of processes; 0 reads in this process.

    Raises:
        ValueError: If no file can be read.
    """
    size = max(1, min(OF_IMAGE, SAMPLED // len(paths)))
    look = partial(extremes, channels=channels, size=size)
    found, errors = [], []
    for item in _over(look, list(enumerate(paths)), workers, 'values'):
        (errors if isinstance(item, str) else found).append(item)
    if not found:
        raise ValueError(f'no image can be read: {errors[0]}')
    low, high = np.min([each[0] for each in found], axis=0), np.max([each[1] for each in found], axis=0)
    tails = np.percentile(np.concatenate([each[2] for each in found]), percentiles, axis=0)
    if channels.ranges is None and channels.percentiles is None:
        channels = replace(channels, ranges=[_range(*pair) for pair in tails.T.tolist()])
    total, first, second = 0, np.zeros(channels.count), np.zeros(channels.count)
    for item in _over(partial(moments, channels=channels), paths, workers, 'mean and deviation'):
        if not isinstance(item, str):
            total, first, second = total + item[0], first + item[1], second + item[2]
    mean = first / total
    std = np.sqrt(np.maximum(second / total - mean**2, 0))
    kinds = sorted({each[3] for each in found})
    return Statistics(len(found), kinds, low, high, tails, channels, mean, std, errors)


def extremes(
    numbered: tuple[int, str], channels: ChannelFormat, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str] | str:
    """Return smallest and largest values (C,), random pixels (K, C) and the type of an image; a text if that fails."""
    index, path = numbered
    try:
        image = channels.read(fileio.get(path))
    except (ValueError, OSError) as error:
        return f'{readable(path)} {error}'
    pixels = image.reshape(-1, image.shape[2])
    chosen = pixels if len(pixels) <= size else pixels[np.random.default_rng(index).integers(0, len(pixels), size)]
    return pixels.min(axis=0), pixels.max(axis=0), chosen, image.dtype.name


def moments(path: str, channels: ChannelFormat) -> tuple[int, np.ndarray, np.ndarray] | str:
    """Return the number of pixels of an image, and the sums (C,) of its scaled values and of their squares."""
    try:
        image = channels.read(fileio.get(path))
        values = channels.scale(image, channels.limits(image)).astype(np.float64)
    except (ValueError, OSError) as error:
        return f'{readable(path)} {error}'
    return image.shape[0] * image.shape[1], values.sum(axis=(0, 1)), np.square(values).sum(axis=(0, 1))


def _over(function: Callable, items: Sequence, workers: int, what: str) -> Iterator:
    """Yield the results of a function in the order of the items, with a progress bar on a terminal."""
    with contextlib.ExitStack() as stack:
        results: Iterator = map(function, items)
        if workers:
            results = stack.enter_context(ProcessPoolExecutor(workers)).map(function, items, chunksize=16)
        yield from tqdm(results, what, len(items), unit=' images', disable=None)


def _range(low: float, high: float) -> tuple[float, float]:
    """Return a range of two different numbers that are short to write."""
    low, high = _short(low), _short(high)
    return (low, high) if low < high else (low, low + 1)


def _short(value: float) -> float:
    """Round to a few significant digits; whole numbers are integers."""
    rounded = float(f'{value:.{DIGITS}g}')
    return int(rounded) if rounded == int(rounded) else rounded


def guess_format(path: str) -> dict:
    """Return number and axis of the channels of a file: the shorter one of its first and last dimension."""
    try:
        shape = decode(fileio.get(path)).shape
    except ValueError as error:
        raise ValueError(f'{readable(path)} {error}') from error
    if len(shape) not in (2, 3):
        raise ValueError(f'{readable(path)} is an array {shape}: give files with a height, a width and channels')
    if len(shape) == 2:
        return dict(number=1)
    return dict(number=shape[0], axis='first') if shape[0] < shape[2] else dict(number=shape[2])


def files_of(data: str, limit: int | None) -> list[str]:
    """Return the image files of a folder, an archive or a list, evenly spaced if there are more than ``limit``."""
    listed = os.path.isfile(data) and not ARCHIVE.search(data)
    where: dict[str, Any] = dict(list_file=data, roots=folder_of_list(data)) if listed else dict(roots=data)
    dataset = ImageFiles(**where, extensions=[*EXTENSIONS, ENDING], limit=limit, pipeline=[])
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def files_of_config(path: str, options: dict | None, limit: int | None) -> tuple[list[str], dict]:
    """Return the training images of a config, evenly spaced, and its setting ``image_channels``."""
    cfg = load_config(path, options)
    require(cfg, 'train_dataloader')
    paths: list[str] = []
    for leaf in leaves(build_dataset(dict(cfg.train_dataloader.dataset))):
        leaf.full_init()
        paths += [info['img_path'] for info in map(leaf.get_data_info, range(len(leaf))) if 'img_path' in info]
    if not paths:
        raise ValueError(f'{path} trains on images in memory: give a config for image files, or a folder')
    return [paths[index] for index in spread(len(paths), limit)], dict(cfg.get('image_channels') or {})


def run(args: argparse.Namespace) -> None:
    """Measure the data and print a table and the setting."""
    if args.workers < 0:
        raise ValueError(f'--workers {args.workers}: give 0 or a number of processes')
    given = {key: getattr(args, key) for key in SETTINGS if getattr(args, key, None) is not None}
    if names_config(args.data):
        paths, settings = files_of_config(args.data, args.cfg_options, args.limit)
        given = {key: value for key, value in settings.items() if key in SETTINGS and value is not None} | given
    elif args.cfg_options:
        raise ValueError(f'--data and --cfg-options change a config, but {args.data} is none')
    else:
        paths = files_of(args.data, args.limit)
    percentiles = tuple(args.tails)
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f'--tails {" ".join(map(str, percentiles))}: give two percentages, the lower one first')
    if 'number' not in given:
        given = guess_format(paths[0]) | given
    found = measure(paths, ChannelFormat(**given), percentiles, args.workers)
    if found.unreadable:
        more = ' ...' if len(found.unreadable) > SHOWN else ''
        lines = '\n  '.join(found.unreadable[:SHOWN])
        print(f'left out {count_of(len(found.unreadable), "unreadable image")}:\n  {lines}{more}', file=sys.stderr)
    print(f'{count_of(found.images, "image")}, values of type {", ".join(found.kinds)}\n')
    print(f'{found.table(percentiles)}\n\n{found.setting()}')
