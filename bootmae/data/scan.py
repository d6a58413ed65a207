"""Scanning folders: images, their order and classes, and messages about folders that do not fit."""

import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from mmengine.logging import print_log

EXTENSIONS = ('jpg', 'jpeg', 'png', 'ppm', 'bmp', 'pgm', 'tif', 'tiff', 'webp')
SPLIT_NAMES = {'train', 'val', 'test', 'valid', 'validation'}


def scan_folders(folders: Sequence[str], extensions: frozenset[str], visited: set | None = None) -> list[str]:
    """Return the paths of all images below the folders.

    Args:
        folders: The folders, in order.
        extensions: File name endings of images.
        visited: Folders that earlier calls have scanned, to be skipped; new ones are added.

    Raises:
        FileNotFoundError: If a folder has no image. Says what it holds instead.
    """
    paths, visited = [], set() if visited is None else visited
    for folder in folders:
        before, others = len(paths), Counter()
        _scan(folder, extensions, visited, paths, others)
        if len(paths) == before:
            raise FileNotFoundError(no_images(folder, extensions, others))
    return paths


def scan_classes(root: str, extensions: frozenset[str], names: Sequence[str] | None = None):
    """Scan a folder of class folders.

    Args:
        root: The folder.
        extensions: File name endings of images.
        names: Classes in label order. By default the folders in name order.

    Returns:
        Paths, labels and class names.

    Raises:
        FileNotFoundError: If the root or a class folder has no images.
        ValueError: If images lie outside the class folders, folders are splits and not classes, or a folder is not in
            ``names``.
    """
    folders, loose = class_folders(root, extensions)
    check_classes(root, folders, loose, names)
    present, paths, labels, others, empty = set(folders), [], array('q'), Counter(), []
    for label, name in enumerate(names or folders):
        if name not in present:
            continue
        before = len(paths)
        # `visited` is not shared, since two class folders may be links to the same folder.
        _scan(os.path.join(root, name), extensions, set(), paths, others)
        labels.extend([label] * (len(paths) - before))
        if len(paths) == before:
            empty.append(name)
    if not paths:
        raise FileNotFoundError(no_images(root, extensions, others))
    if empty:
        raise FileNotFoundError(
            f'no images in {len(empty)} class folders of {root}: {shorten(empty)}; fill '
            f'or remove them (other files there: {shorten_counts(others)})'
        )
    warn_of_absent(root, present, names)
    return paths, labels, tuple(names or folders)


def check_classes(where: str, folders: Sequence[str], loose: Sequence[str], names: Sequence[str] | None):
    """Raise a ValueError for images outside folders (``loose``), splits, and folders that are not in ``names``."""
    if loose:
        raise ValueError(
            f"labels='folder', but {where} holds images outside class folders, such as "
            f"{loose[0]}: sort them into one folder per class, or use list_file with labels='list' "
            '(the validation images of ImageNet are delivered flat)'
        )
    if folders and set(folders) <= SPLIT_NAMES:
        raise ValueError(
            f"labels='folder', but the folders of {where} look like splits, not classes: "
            f'{shorten(folders)}; add split={folders[0]!r}'
        )
    unknown = sorted(set(folders) - set(names)) if names else []
    if unknown:
        raise ValueError(
            f'{where} has folders that are not among the {len(names)} classes: '
            f'{shorten(unknown)}; remove them, or correct `classes` '
            '(by default, with `split`, the folders of ROOT/train)'
        )


def warn_of_absent(where: str, present: Iterable[str], names: Sequence[str] | None):
    """Log a warning about classes without a folder."""
    absent = [name for name in names or () if name not in present]
    if absent:
        print_log(
            f'{where} has no folder for {len(absent)} of {len(names)} classes: {shorten(absent)}',
            logger='current',
            level=logging.WARNING,
        )


def _scan(folder: str, extensions: frozenset[str], visited: set, paths: list[str], others: Counter):
    """Append the images below ``folder`` to ``paths`` and count everything else by ending in ``others``."""
    status = os.stat(folder)
    key = (status.st_dev, status.st_ino)
    if key in visited:  # a link back to a parent, or a second way to the same folder
        others['folders already read under another name'] += 1
        return
    visited.add(key)
    with os.scandir(folder) as listing:
        entries = sorted((e for e in listing if not skipped(e.name)), key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir():
            _scan(entry.path, extensions, visited, paths, others)
        elif not entry.is_file():
            others['broken links'] += 1
        elif suffix(entry.name) in extensions:
            paths.append(entry.path)
        else:
            others['.' + suffix(entry.name) if suffix(entry.name) else 'files without ending'] += 1


def class_folders(root: str, extensions: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the image files that lie directly in ``root``."""
    folders, loose = [], []
    with os.scandir(root) as entries:
        for entry in entries:
            if skipped(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif suffix(entry.name) in extensions:
                loose.append(entry.name)
    return sorted(folders), sorted(loose)


def classes_of_train(root: str, split: str | None) -> list[str] | None:
    """Return the class names of ROOT/train for another split, where a missing class must not shift the labels."""
    train = os.path.join(os.path.dirname(root), 'train')
    if split in (None, 'train') or not os.path.isdir(train):
        return None
    return class_folders(train, frozenset())[0] or None


def warn_of_splits(root: str, folders: Iterable[str]):
    """Log a warning about a root that contains several splits, which are all used."""
    splits = sorted(SPLIT_NAMES.intersection(folders))
    if len(splits) > 1:
        print_log(
            f'{root} holds the splits {shorten(splits)} and the images of all are used; '
            "add split='train' to keep the others unseen",
            logger='current',
            level=logging.WARNING,
        )


def contents(folder: str) -> str:
    """List a folder, or its nearest existing parent, for an error message."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(name for name in os.listdir(folder) if not skipped(name))
    return f'{folder} holds {shorten(names) if names else "nothing"}'


def no_images(folder: str, extensions: frozenset[str], others: Counter) -> str:
    """Return the message for a folder or an archive without images."""
    return (
        f'no images in {folder}: looked for {listed(extensions)}, found {shorten_counts(others)}; '
        'correct the folder or extend `extensions`'
        + (f"; for the images in the archives, roots='{folder}/*.tar'" if others['.tar'] else '')
    )


def shorten(names: Sequence[str], count: int = 8) -> str:
    """Join the first names, and say how many there are."""
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


def shorten_counts(others: Counter) -> str:
    """Join counts of file name endings, the most frequent first."""
    return shorten([f'{count} {ending}' for ending, count in others.most_common()]) or 'nothing'


def listed(extensions: frozenset[str]) -> str:
    """Join file name endings."""
    return ' '.join('.' + extension for extension in sorted(extensions))


def skipped(name: str) -> bool:
    """Return whether a file or folder is hidden or a resource folder of macOS."""
    return name.startswith('.') or name == '__MACOSX'


def suffix(name: str) -> str:
    """Return the ending of a file name in lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()
