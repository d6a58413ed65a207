"""A fingerprint of the images and annotations of a data set shows whether two results are on the same data."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .subsets import leaves
from .tar import is_tar_path, split_tar_path

PATHS = ('img_path', 'seg_map_path')
ANSWERS = ('gt_label', 'instances')  # keys of what is to be predicted


def fingerprint(dataset: Dataset) -> str:
    """Return 12 hexadecimal digits that change with the name or size of any image, its label, mask or instances.

    Files count with their names inside the data set and their sizes in bytes. Their content is not read. A copy in
    another folder or in a tar archive has the same fingerprint. Images in memory count with their pixels.

    Args:
        dataset: A data set of mmpretrain, mmseg or mmdet, wrapped or not.
    """
    infos = [leaf.get_data_info(index) for leaf in leaves(dataset) for index in range(len(leaf))]
    paths = [str(info[key]) for info in infos for key in PATHS if info.get(key)]
    roots = {packed: _root(path for path in paths if is_tar_path(path) == packed) for packed in (False, True)}
    digest = hashlib.sha256()
    for info in infos:
        digest.update(_record(info, roots))
    return digest.hexdigest()[:12]


def _record(info: dict[str, Any], roots: dict[bool, str]) -> bytes:
    """Encode an image: its files below the root of plain or packed ones, or its pixels, and what is to be predicted."""
    paths = [str(info[key]) for key in PATHS if info.get(key)]
    files = [(_absolute(path)[len(roots[is_tar_path(path)]) :], _size(path)) for path in paths]
    pixels = hashlib.sha256(np.ascontiguousarray(info['img'])).hexdigest() if 'img' in info else ''
    answer = {key: info[key] for key in ANSWERS if key in info}
    return json.dumps([files, pixels, answer], sort_keys=True, default=_plain).encode()


def _root(paths: Iterable[str]) -> str:
    """Return the folder that all files have in common, without a slash at the end."""
    folders = {os.path.dirname(_absolute(path)) for path in paths}
    return os.path.commonpath(folders).rstrip(os.sep) if folders else ''


def _absolute(path: str) -> str:
    """Return the absolute path of a file on its disk, or inside its archive."""
    return '/' + split_tar_path(path)[1] if is_tar_path(path) else os.path.abspath(path)


def _size(path: str) -> int:
    """Size of a file in bytes; -1 for one that is not on this machine."""
    if is_tar_path(path):
        return split_tar_path(path)[3]
    return os.path.getsize(path) if os.path.isfile(path) else -1


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
