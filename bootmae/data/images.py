"""A data set of image files: folders of any depth, class folders, ImageNet splits, list files and tar archives.

All errors about files and folders are reported when the data set is built, before a run spends time on a model.
"""

import os
from collections.abc import Iterable, Sequence

import cv2
import mmcv
import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..text import count_of, printable
from .findings import DataFault, FileFinding
from .jpeg import START, check_whole, is_whole
from .lists import check_exist, folder_of_list, read_classes, read_list
from .roots import resolve_roots
from .scan import (
    EXTENSIONS,
    SPLIT_NAMES,
    Survey,
    class_folders,
    classes_of_train,
    scan_classes,
    scan_folders,
    shorten,
    splits_together,
    unused,
)
from .scan_tar import find_members, scan_tar, scan_tar_classes
from .subsets import few_labels, spread
from .tar import is_tar_path, read_tar_path, readable

WRONG_LABELS = 'labels and classes do not fit'


@DATASETS.register_module()
class ImageFiles(BaseDataset):
    """Images on disk, with or without labels.

    The order is fixed: roots in their order, each depth first and sorted by name, or the order of the list file. Hidden
    files and folders and ``__MACOSX`` are skipped. Links to folders are followed, and every folder is used once. Files
    that are not used are counted in the log, by ending.
    Uncompressed tar archives are read in place, see :mod:`bootmae.data.tar`, in the order of the unpacked folder.

    Args:
        roots: Folder or tar archive, or several. Several folders are allowed only without labels. ``*`` and
            ``{000..146}`` stand for many names. Not needed with ``list_file``.
        list_file: UTF-8 text with one image per line, used instead of a scan. Paths are absolute or relative to the
            root, or to the folder of the list if there is no root; for archives they are names of members.
        labels: None for unlabeled images. 'folder' for one class per first-level folder, numbered in name order, or per
            archive if several archives have no folders. 'list' for an integer at the end of each line of ``list_file``.
        split: Folder inside each root, for the layout ROOT/train, ROOT/val of ImageNet. With labels='folder', other
            splits take the class numbers of ROOT/train if it exists.
        extensions: File name endings of images, in any case.
        limit: Largest number of images. They are spread evenly over the order, so that every class keeps its share.
        check_files: Files of a list that are checked for existence: 'some' (100, and the last), 'all' or 'none'.
        num_classes: Expected number of classes; labels outside the range are an error.
        classes: Class names in label order, or a file with one name per line. Fixes the class numbers.
        labels_per_class: Number of random images of each class to keep, out of those that ``limit`` leaves. Smaller
            subsets are part of larger ones. Not allowed for a ``split`` for validation or test.
        subset_seed: Seed of that draw.
        kwargs: Arguments of mmpretrain's BaseDataset, such as ``pipeline`` and ``test_mode``.

    Attributes:
        findings: Notes about folders and classes, as in the log.

    Raises:
        ValueError, FileNotFoundError: Names the path, the value and the remedy. It is a :class:`DataFault` if the data
            do not fit.
    """

    def __init__(
        self,
        roots: str | Sequence[str] | None = None,
        list_file: str | None = None,
        labels: str | None = None,
        split: str | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        limit: int | None = None,
        check_files: str = 'some',
        num_classes: int | None = None,
        classes: str | Sequence[str] | None = None,
        labels_per_class: int | None = None,
        subset_seed: int = 0,
        **kwargs,
    ):
        _check_choice('labels', labels, (None, 'folder', 'list'))
        _check_choice('check_files', check_files, ('some', 'all', 'none'))
        _check_positive('limit', limit)
        _check_positive('num_classes', num_classes)
        _check_subset(labels_per_class, labels, split)
        if labels == 'list' and list_file is None:
            raise ValueError(
                "labels='list' reads the labels from list_file, which is not given: name the "
                "file, or use labels='folder'"
            )
        if labels == 'folder' and list_file is not None:
            raise ValueError(
                f"labels='folder' scans folders and would not read list_file={list_file!r}: "
                "write the labels into the list and use labels='list', or drop list_file"
            )
        self.list_file = None if list_file is None else os.path.expanduser(list_file)
        if roots is None and self.list_file:
            roots = folder_of_list(self.list_file)
        self.roots = resolve_roots('' if roots is None else roots, split)
        self.packed = all(os.path.isfile(root) for root in self.roots)
        if len(self.roots) > 1 and (labels or list_file) and not self.packed:
            raise ValueError(
                f'labels={labels!r}, list_file={list_file!r} need one root, got {self.roots}: '
                'join datasets with ConcatDataset and give each the same `classes`'
            )
        self.findings: list[FileFinding] = []
        self.labels, self.split, self.limit = labels, split, limit
        self.check_files, self.num_classes = check_files, num_classes
        self.labels_per_class, self.subset_seed = labels_per_class, subset_seed
        self.extensions = normalize_extensions(extensions)
        classes = read_classes(os.path.expanduser(classes)) if isinstance(classes, str) else classes
        super().__init__(ann_file='', classes=classes, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return dict(img_path[, gt_label]) for each image; mmengine packs them into a single byte buffer."""
        found = self._find(self._metainfo.get('classes')).settle()
        paths, labels, self.findings = found.paths, found.labels, found.findings
        if labels is not None:
            self._metainfo['classes'] = self._class_names(found)
        chosen = spread(len(paths), self.limit)
        if labels is None:
            return [dict(img_path=paths[i]) for i in chosen]
        if self.labels_per_class is not None:
            chosen = self._few(chosen, labels)
        return [dict(img_path=paths[i], gt_label=labels[i]) for i in chosen]

    def _find(self, names: Sequence[str] | None) -> Survey:
        """Find all images, with labels and class names as far as they are known."""
        if self.list_file is not None:
            root = '' if self.packed else self.roots[0]
            paths, labels = read_list(self.list_file, root, self.extensions, self.labels == 'list')
            if self.packed:
                paths = find_members(self.roots, self.split, paths, self.list_file)
            else:
                check_exist(paths, self.list_file, root, self.check_files)
            return Survey(paths, labels, names)
        if self.labels == 'folder':
            if self.packed:
                return scan_tar_classes(self.roots, self.extensions, names, self.split)
            return scan_classes(self.roots[0], self.extensions, names or classes_of_train(self.roots[0], self.split))
        found, visited = Survey([], None, names), set()
        for root in self.roots:
            if os.path.isfile(root):
                part = scan_tar(root, self.extensions, self.split)
                found.paths += part.paths
                found.findings += unused(part.where, part.others) + splits_together(part.where, part.folders())
            else:
                found.paths += scan_folders([root], self.extensions, visited, found.findings)
                found.findings += splits_together(root, class_folders(root))
        return found

    def _few(self, chosen: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """Draw ``labels_per_class`` images of each class from ``chosen``."""
        source = self.list_file or self.roots[0]
        remedy = f'lower labels_per_class{", raise limit" if len(chosen) < len(labels) else ""} or correct {source}'
        names = self._metainfo['classes']
        return chosen[few_labels(np.asarray(labels)[chosen], self.labels_per_class, self.subset_seed, names, remedy)]

    def prepare_data(self, idx: int):
        """The sample after the pipeline. ValueError for a JPEG that is cut off, whatever the decoder made of it."""
        data = super().prepare_data(idx)
        if not any(getattr(step, 'checks_whole', False) for step in self.pipeline.transforms):
            check_image_whole(self.get_data_info(idx)['img_path'])
        return data

    def _class_names(self, found: Survey) -> tuple[str, ...]:
        """Check all labels against the number of classes and return the class names in label order."""
        names, labels, source = found.names, found.labels, self.list_file or self.roots[0]
        if names is not None and self.num_classes not in (None, len(names)):
            detail = (
                f'{count_of(len(names), "class", "classes")}, but num_classes={self.num_classes}: correct one of them '
                f'(classes: {shorten(names)})'
            )
            raise DataFault([FileFinding(WRONG_LABELS, source, detail)], found.paths)
        num_classes = len(names) if names is not None else self.num_classes or max(labels) + 1
        if max(labels) >= num_classes:
            detail = (
                f'label {max(labels)}, but labels of {count_of(num_classes, "class", "classes")} go from 0 to '
                f'{num_classes - 1}: raise num_classes, or subtract 1 from all labels if the list counts from 1'
            )
            raise DataFault([FileFinding(WRONG_LABELS, source, detail)], found.paths)
        return tuple(map(printable, names)) if names is not None else tuple(str(i) for i in range(num_classes))

    def describe(self) -> str:
        """Return one line for the log: number of images, number of classes, source."""
        classes = 'no labels' if self.labels is None else count_of(len(self.metainfo['classes']), 'class', 'classes')
        source = f', list {self.list_file}' if self.list_file else ''
        if self.labels_per_class is not None:
            classes += f', {count_of(self.labels_per_class, "label")} of each (subset_seed={self.subset_seed})'
        return f'{count_of(len(self), "image")}, {classes}, roots {shorten(self.roots)}{source}'

    def extra_repr(self) -> list[str]:
        """Return the lines for mmpretrain's ``repr``."""
        return [self.describe()] if self._fully_initialized else []

    def images(self, indices: Iterable[int], size: int = 224) -> np.ndarray:
        """Return the center square of images, resized: RGB uint8 (n, size, size, 3).

        Raises:
            ValueError: If a file cannot be decoded. Names the file.
        """
        return np.stack([_square(self.get_data_info(int(i))['img_path'], size) for i in indices])


def check_image_whole(path: str) -> None:
    """Raise a ValueError for a JPEG that is cut off, in a file or in an archive.

    Accept all other formats, and files that are not on this machine: mmengine's backends (``backend_args``) read them.
    """
    if is_tar_path(path):
        if (data := read_tar_path(path))[:2] == START and not is_whole(data):
            raise ValueError(f'{readable(path)} is cut off: a JPEG file without its end')
    elif os.path.isfile(path):
        check_whole(path)


def normalize_extensions(extensions: str | Sequence[str]) -> frozenset[str]:
    """Return file name endings in lower case, without the dot."""
    extensions = [extensions] if isinstance(extensions, str) else extensions
    normal = frozenset(extension.lower().lstrip('.') for extension in extensions)
    if not normal or '' in normal:
        raise ValueError(f"extensions={extensions!r} must be file name endings such as ('jpg', 'png')")
    return normal


def _check_choice(name: str, value: str | None, choices: tuple):
    if value not in choices:
        raise ValueError(f'{name}={value!r} must be one of {", ".join(map(repr, choices))}')


def _check_positive(name: str, value: int | None):
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f'{name}={value!r} must be a positive integer or None')


def _check_subset(labels_per_class: int | None, labels: str | None, split: str | None):
    _check_positive('labels_per_class', labels_per_class)
    if labels_per_class is None:
        return
    if labels is None:
        raise ValueError(
            f"labels_per_class={labels_per_class} needs labels, and labels=None: use labels='folder' or "
            "'list', or for fewer unlabeled images limit"
        )
    if split and split.strip('/') in SPLIT_NAMES - {'train'}:
        raise ValueError(
            f'labels_per_class={labels_per_class} is for training images, and split={split!r}: drop it '
            'for validation and test, whose size must not change'
        )


def _square(path: str, size: int) -> np.ndarray:
    image = mmcv.imread(path)  # BGR, since with RGB its error for a broken file would not name the file
    if image is None:
        raise ValueError(f'{readable(path)} cannot be decoded: remove the file or replace it')
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    middle = image[top : top + side, left : left + side, ::-1]
    return cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
