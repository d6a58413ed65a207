"""Image files as a dataset: folders of any depth, class folders, ImageNet splits and list files.

Everything a user can get wrong about a folder is reported when the dataset is built, so a run can build its
dataset first and fail before it spends time on a model.
"""
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import cv2
import mmcv
import numpy as np
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from .jpeg import check_whole

EXTENSIONS = ('jpg', 'jpeg', 'png', 'ppm', 'bmp', 'pgm', 'tif', 'tiff', 'webp')
SPLIT_NAMES = {'train', 'val', 'test', 'valid', 'validation'}
NUM_SPOT_CHECKS = 100


@DATASETS.register_module()
class ImageFiles(BaseDataset):
    """Images on disk, with or without labels.

    The order is fixed: depth first, in name order, root after root, or the order of the list file. Hidden
    files and folders and ``__MACOSX`` are skipped. Links to folders are followed, and a folder reached twice
    is used once.

    Args:
        roots: Folder, or several folders (without labels only) that are read one after the other.
        list_file: Text file with one image a line, absolute or relative to the root, used instead of a scan.
        labels: None for unlabelled images; 'folder' for one class per first-level folder, numbered in name
            order; 'list' for an integer after the last blank of each line of ``list_file``.
        split: Folder inside each root, for the ImageNet layout ROOT/train, ROOT/val. The class numbers of any
            other split with labels='folder' are those of ROOT/train where that exists.
        extensions: File name endings that count as images, in any case.
        limit: Use at most so many images, spread evenly over the order, so that every class keeps its share.
        check_files: How many files of a list must be seen to exist: 'some' (the first, the last and about 100
            between them), 'all' or 'none'.
        num_classes: Expected number of classes; labels outside the range are an error.
        classes: Class names in label order, or a file with one name a line; fixes the class numbers.
        kwargs: Arguments of mmpretrain's BaseDataset, such as ``pipeline`` and ``test_mode``.

    Errors: ValueError or FileNotFoundError naming the path, the value and the remedy.
    """

    def __init__(self,
                 roots: str | Sequence[str],
                 list_file: str | None = None,
                 labels: str | None = None,
                 split: str | None = None,
                 extensions: Sequence[str] = EXTENSIONS,
                 limit: int | None = None,
                 check_files: str = 'some',
                 num_classes: int | None = None,
                 classes: str | Sequence[str] | None = None,
                 **kwargs):
        _check_choice('labels', labels, (None, 'folder', 'list'))
        _check_choice('check_files', check_files, ('some', 'all', 'none'))
        _check_positive('limit', limit)
        _check_positive('num_classes', num_classes)
        if labels == 'list' and list_file is None:
            raise ValueError("labels='list' reads the labels from list_file, which is not given: name the "
                             "file, or use labels='folder'")
        if labels == 'folder' and list_file is not None:
            raise ValueError(f"labels='folder' scans folders and would not read list_file={list_file!r}: "
                             "write the labels into the list and use labels='list', or drop list_file")
        self.roots = _resolve_roots(roots, split)
        if len(self.roots) > 1 and (labels or list_file):
            raise ValueError(f'labels={labels!r}, list_file={list_file!r} need one root, got {self.roots}: '
                             'join datasets with ConcatDataset and give each the same `classes`')
        self.list_file = None if list_file is None else os.path.expanduser(list_file)
        self.labels, self.split, self.limit = labels, split, limit
        self.check_files, self.num_classes = check_files, num_classes
        self.extensions = _normalise_extensions(extensions)
        super().__init__(ann_file='', classes=classes, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict(img_path[, gt_label]) an image; mmengine then packs them into a single byte buffer."""
        names = self._metainfo.get('classes')
        if self.list_file is not None:
            paths, labels = read_list(self.list_file, self.roots[0], self.extensions, self.labels == 'list')
            _check_exist(paths, self.list_file, self.roots[0], self.check_files)
        elif self.labels == 'folder':
            names = names or _classes_of_train(self.roots[0], self.split)
            paths, labels, names = scan_classes(self.roots[0], self.extensions, names)
        else:
            paths, labels = scan_folders(self.roots, self.extensions), None
            _warn_of_splits(self.roots)
        if labels is not None:
            self._metainfo['classes'] = self._class_names(names, labels)
        chosen = range(len(paths))
        if self.limit is not None and self.limit < len(paths):
            chosen = [i * len(paths) // self.limit for i in range(self.limit)]
        if labels is None:
            return [dict(img_path=paths[i]) for i in chosen]
        return [dict(img_path=paths[i], gt_label=labels[i]) for i in chosen]

    def prepare_data(self, idx: int):
        """The sample after the pipeline. ValueError for a JPEG that is cut off, whatever the decoder made of it."""
        data = super().prepare_data(idx)
        check_whole(self.get_data_info(idx)['img_path'])
        return data

    def _class_names(self, names: Sequence[str] | None, labels: Sequence[int]) -> tuple[str, ...]:
        """Class names in label order, after checking every label against their number."""
        source = self.list_file or self.roots[0]
        if names is not None and self.num_classes not in (None, len(names)):
            raise ValueError(f'{source} has {len(names)} classes, but num_classes={self.num_classes}: '
                             f'correct one of them (classes: {_shorten(names)})')
        num_classes = len(names) if names is not None else self.num_classes or max(labels) + 1
        if max(labels) >= num_classes:
            raise ValueError(f'{source} has label {max(labels)}, but labels of {num_classes} classes go from '
                             f'0 to {num_classes - 1}: raise num_classes, or subtract 1 from all labels '
                             'if the list counts from 1')
        return tuple(names) if names is not None else tuple(str(i) for i in range(num_classes))

    def describe(self) -> str:
        """One line for the log: number of images, number of classes, where they come from."""
        classes = 'no labels' if self.labels is None else f'{len(self.metainfo["classes"])} classes'
        source = f', list {self.list_file}' if self.list_file else ''
        return f'{len(self):,} images, {classes}, roots {", ".join(self.roots)}{source}'

    def extra_repr(self) -> list[str]:
        """Lines for mmpretrain's ``repr``."""
        return [self.describe()] if self._fully_initialized else []

    def images(self, indices: Iterable[int], size: int = 224) -> np.ndarray:
        """Pictures for a report: RGB uint8 (n, size, size, 3), the middle square of each image, resized.

        Errors: ValueError naming the file that cannot be decoded.
        """
        return np.stack([_square(self.get_data_info(int(i))['img_path'], size) for i in indices])


def scan_folders(folders: Sequence[str], extensions: frozenset[str]) -> list[str]:
    """Paths of all images below the folders.

    Errors: FileNotFoundError when one of them holds no image, saying what it holds instead.
    """
    paths, visited = [], set()
    for folder in folders:
        before, others = len(paths), Counter()
        _scan(folder, extensions, visited, paths, others)
        if len(paths) == before:
            raise FileNotFoundError(_no_images(folder, extensions, others))
    return paths


def scan_classes(root: str, extensions: frozenset[str], names: Sequence[str] | None = None):
    """Images of a folder of class folders: paths, labels, class names.

    ``names`` fixes the classes and their order; otherwise they are the folders in name order.

    Errors: FileNotFoundError for a root or class folder without images; ValueError for images outside the
    class folders, for folders that are splits rather than classes, and for a folder unknown to ``names``.
    """
    folders, loose = _class_folders(root, extensions)
    if loose:
        raise ValueError(f"labels='folder', but {root} holds images outside class folders, such as "
                         f"{loose[0]}: sort them into one folder per class, or use list_file with labels='list' "
                         '(the validation images of ImageNet are delivered flat)')
    if folders and set(folders) <= SPLIT_NAMES:
        raise ValueError(f"labels='folder', but the folders of {root} look like splits, not classes: "
                         f'{_shorten(folders)}; add split={folders[0]!r}')
    unknown = sorted(set(folders) - set(names)) if names else []
    if unknown:
        raise ValueError(f'{root} has folders that are none of the {len(names)} classes: '
                         f'{_shorten(unknown)}; remove them, or correct `classes` '
                         '(by default, with `split`, the folders of ROOT/train)')
    present, paths, labels, others, empty = set(folders), [], array('q'), Counter(), []
    for label, name in enumerate(names or folders):
        if name not in present:
            continue
        before = len(paths)
        # `visited` is not shared: two class folders may be links to one folder if the user wants that.
        _scan(os.path.join(root, name), extensions, set(), paths, others)
        labels.extend([label] * (len(paths) - before))
        if len(paths) == before:
            empty.append(name)
    if not paths:
        raise FileNotFoundError(_no_images(root, extensions, others))
    if empty:
        raise FileNotFoundError(f'no images in {len(empty)} class folders of {root}: {_shorten(empty)}; fill '
                                f'or remove them (all that is not an image there: {_shorten_counts(others)})')
    absent = [name for name in names or () if name not in present]
    if absent:
        print_log(f'{root} has no folder for {len(absent)} of {len(names)} classes: {_shorten(absent)}',
                  logger='current', level=logging.WARNING)
    return paths, labels, tuple(names or folders)


def read_list(list_file: str, root: str, extensions: frozenset[str], labelled: bool):
    """Paths and labels (None unless ``labelled``) of a list file.

    Errors: FileNotFoundError or ValueError naming the list, the line and what is wrong with it.
    """
    if not os.path.isfile(list_file):
        raise FileNotFoundError(f'list_file {os.path.abspath(list_file)} is not a file; '
                                f'{_contents(os.path.dirname(os.path.abspath(list_file)))}')
    paths, labels = [], array('q')
    with open(list_file, encoding='utf-8-sig', errors='surrogateescape') as lines:
        for number, line in enumerate(lines, 1):
            entry = line.strip()
            if not entry:
                continue
            if labelled:
                entry, label = _split_label(entry, f'{list_file}:{number}')
                labels.append(label)
            if _suffix(entry) not in extensions:
                raise ValueError(_not_an_image(entry, f'{list_file}:{number}', extensions, labelled))
            paths.append(os.path.join(root, entry))
    if not paths:
        raise ValueError(f'list_file {list_file} names no image: write one path a line')
    return paths, labels if labelled else None


def _split_label(entry: str, where: str) -> tuple[str, int]:
    path, *label = entry.rsplit(None, 1)
    if not label or not re.fullmatch(r'-?[0-9]+', label[0]):
        raise ValueError(f"{where}: no integer label at the end of {entry!r}; labels='list' wants 'path label' "
                         'on each line, use labels=None for a list without labels')
    if int(label[0]) < 0:
        raise ValueError(f'{where}: label {label[0]} is negative; labels count from 0')
    return path, int(label[0])


def _not_an_image(entry: str, where: str, extensions: frozenset[str], labelled: bool) -> str:
    head, *tail = entry.rsplit(None, 1)
    if not labelled and tail and _suffix(head) in extensions:
        return f"{where}: {entry!r} has {tail[0]!r} after the file name; if that is the label, use labels='list'"
    return (f'{where}: {entry!r} does not end like an image ({_listed(extensions)}); '
            'correct the line or extend `extensions`')


def _check_exist(paths: list[str], list_file: str, root: str, how_many: str):
    if how_many == 'none':
        return
    spread = np.unique(np.linspace(0, len(paths) - 1, NUM_SPOT_CHECKS).astype(int))
    for i in spread if how_many == 'some' else range(len(paths)):
        if not os.path.isfile(paths[i]):
            raise FileNotFoundError(f'list_file {list_file} names {paths[i]} (image {i + 1} of '
                                    f'{len(paths)}), which does not exist; relative paths start at {root}: '
                                    'correct `roots` or the list')


def _scan(folder: str, extensions: frozenset[str], visited: set, paths: list[str], others: Counter):
    """Append the images below ``folder`` to ``paths`` and count everything else by ending in ``others``."""
    status = os.stat(folder)
    key = (status.st_dev, status.st_ino)
    if key in visited:  # a link back to a parent, or a second way to the same folder
        others['folders already read under another name'] += 1
        return
    visited.add(key)
    with os.scandir(folder) as entries:
        entries = sorted((e for e in entries if not _skipped(e.name)), key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir():
            _scan(entry.path, extensions, visited, paths, others)
        elif not entry.is_file():
            others['broken links'] += 1
        elif _suffix(entry.name) in extensions:
            paths.append(entry.path)
        else:
            others['.' + _suffix(entry.name) if _suffix(entry.name) else 'files without ending'] += 1


def _class_folders(root: str, extensions: frozenset[str]) -> tuple[list[str], list[str]]:
    """Names of the folders, and of the image files, that lie directly in ``root``."""
    folders, loose = [], []
    with os.scandir(root) as entries:
        for entry in entries:
            if _skipped(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif _suffix(entry.name) in extensions:
                loose.append(entry.name)
    return sorted(folders), sorted(loose)


def _classes_of_train(root: str, split: str | None) -> list[str] | None:
    """Class names of ROOT/train for another split of ROOT: a class it lacks must not shift the labels."""
    train = os.path.join(os.path.dirname(root), 'train')
    if split in (None, 'train') or not os.path.isdir(train):
        return None
    return _class_folders(train, frozenset())[0] or None


def _warn_of_splits(roots: Sequence[str]):
    for root in roots:
        splits = sorted(SPLIT_NAMES.intersection(_class_folders(root, frozenset())[0]))
        if len(splits) > 1:
            print_log(f'{root} holds the splits {_shorten(splits)} and the images of all are used; '
                      "add split='train' to keep the others unseen", logger='current', level=logging.WARNING)


def _resolve_roots(roots: str | Sequence[str], split: str | None) -> list[str]:
    """Existing folders, none inside another.

    Errors: FileNotFoundError for a missing one; ValueError for a file, for an empty value and for overlaps.
    """
    several = [roots] if isinstance(roots, (str, os.PathLike)) else list(roots)
    if not several or '' in several:
        raise ValueError(f'roots={roots!r} names no folder: give the folder that holds the images')
    folders = [_resolve_root(os.path.expanduser(root), split) for root in several]
    real = [os.path.realpath(folder) for folder in folders]
    for i, outer in enumerate(real):
        for j, inner in enumerate(real):
            if i != j and os.path.commonpath([outer, inner]) == outer:
                raise ValueError(f'roots {folders[i]} and {folders[j]} overlap, so images would count twice: '
                                 'remove one of them')
    return folders


def _resolve_root(root: str, split: str | None) -> str:
    if os.path.isfile(root):
        raise ValueError(f'roots={root} is a file, not a folder: give the folder that holds the images; '
                         'lists go to list_file, archives must be unpacked')
    if not os.path.isdir(root):
        raise FileNotFoundError(f'roots={root} does not exist (looked for {os.path.abspath(root)}); '
                                f'{_contents(os.path.dirname(os.path.abspath(root)))}')
    if not split:
        return root
    folder = os.path.join(root, split.strip('/'))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'split={split!r}: there is no folder {folder}; {_contents(root)}; '
                                'choose one of these or leave split out')
    return folder


def _contents(folder: str) -> str:
    """What a folder holds, or the nearest one above that exists, for an error message."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(name for name in os.listdir(folder) if not _skipped(name))
    return f'{folder} holds {_shorten(names) if names else "nothing"}'


def _no_images(folder: str, extensions: frozenset[str], others: Counter) -> str:
    return (f'no images in {folder}: looked for {_listed(extensions)}, found {_shorten_counts(others)}; '
            'correct the folder or extend `extensions`')


def _shorten(names: Sequence[str], count: int = 8) -> str:
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


def _shorten_counts(others: Counter) -> str:
    return _shorten([f'{count} {ending}' for ending, count in others.most_common()]) or 'nothing at all'


def _listed(extensions: frozenset[str]) -> str:
    return ' '.join('.' + extension for extension in sorted(extensions))


def _skipped(name: str) -> bool:
    return name.startswith('.') or name == '__MACOSX'


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _normalise_extensions(extensions: str | Sequence[str]) -> frozenset[str]:
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


def _square(path: str, size: int) -> np.ndarray:
    image = mmcv.imread(path)  # BGR: asked for RGB, it would fail on an undecodable file without naming it
    if image is None:
        raise ValueError(f'{path} cannot be decoded: remove the file or replace it')
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    middle = image[top:top + side, left:left + side, ::-1]
    return cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
