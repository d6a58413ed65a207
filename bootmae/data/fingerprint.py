"""A fingerprint of the images and annotations of a data set shows whether two results are on the same data."""

import hashlib
import json
import os
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .subsets import leaves

PATHS = ('img_path', 'seg_map_path')
ANSWERS = ('gt_label', 'instances')  # keys of what is to be predicted


def fingerprint(dataset: Dataset) -> str:
    """Return 12 hexadecimal digits that change with the name or size of any image, its label, mask or instances.

    Files count with their names inside the data set and their sizes in bytes. Their content is not read, and a copy in
    another folder has the same fingerprint. Images in memory count with their pixels.

    Args:
        dataset: A data set of mmpretrain, mmseg or mmdet, wrapped or not.
    """
    infos = [leaf.get_data_info(index) for leaf in leaves(dataset) for index in range(len(leaf))]
    folders = [os.path.dirname(str(info[key])) for info in infos for key in PATHS if info.get(key)]
    root = os.path.commonpath(folders) if folders else ''
    digest = hashlib.sha256()
    for info in infos:
        digest.update(_record(info, root))
    return digest.hexdigest()[:12]


def _record(info: dict[str, Any], root: str) -> bytes:
    """Encode one image: its files below ``root``, or its pixels, and what is to be predicted."""
    files = [(str(info[key])[len(root) :], _size(str(info[key]))) for key in PATHS if info.get(key)]
    pixels = hashlib.sha256(np.ascontiguousarray(info['img'])).hexdigest() if 'img' in info else ''
    answer = {key: info[key] for key in ANSWERS if key in info}
    return json.dumps([files, pixels, answer], sort_keys=True, default=_plain).encode()


def _size(path: str) -> int:
    """Size of a file in bytes; -1 for a path into an archive."""
    return os.path.getsize(path) if os.path.isfile(path) else -1


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
