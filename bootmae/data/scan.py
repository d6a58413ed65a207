"""Folders of images: what lies in them, in which order, with which class, and what to say if nothing does."""

import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from mmengine.logging import print_log

EXTENSIONS = ('jpg', 'jpeg', 'png', 'ppm', 'bmp', 'pgm', 'tif', 'tiff', 'webp')
SPLIT_NAMES = {'train', 'val', 'test', 'valid', 'validation'}


def scan_folders(folders: Sequence[str], extensions: frozenset[str], visited: set | None = None) -> list[str]:
    """Paths of all images below the folders, those aside that are in ``visited`` from an earlier call.

    Errors: FileNotFoundError when one of them holds no image, saying what it holds instead.
    """
    paths, visited = [], set() if visited is None else visited
    for folder in folders:
        before, others = len(paths), Counter()
        _scan(folder, extensions, visited, paths, others)
        if len(paths) == before:
            raise FileNotFoundError(no_images(folder, extensions, others))
    return paths


def scan_classes(root: str, extensions: frozenset[str], names: Sequence[str] | None = None):
    """Images of a folder of class folders: paths, labels, class names.

    ``names`` fixes the classes and their order; otherwise they are the folders in name order.

    Errors: FileNotFoundError for a root or class folder without images; ValueError for images outside the
    class folders, for folders that are splits rather than classes, and for a folder unknown to ``names``.
    """
    folders, loose = class_folders(root, extensions)
    check_classes(root, folders, loose, names)
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
        raise FileNotFoundError(no_images(root, extensions, others))
    if empty:
        raise FileNotFoundError(
            f'no images in {len(empty)} class folders of {root}: {shorten(empty)}; fill '
            f'or remove them (all that is not an image there: {shorten_counts(others)})'
        )
    warn_of_absent(root, present, names)
    return paths, labels, tuple(names or folders)


def check_classes(where: str, folders: Sequence[str], loose: Sequence[str], names: Sequence[str] | None):
    """Refuse what are no classes: images in no folder (``loose``), splits, and folders unknown to ``names``."""
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
            f'{where} has folders that are none of the {len(names)} classes: '
            f'{shorten(unknown)}; remove them, or correct `classes` '
            '(by default, with `split`, the folders of ROOT/train)'
        )


def warn_of_absent(where: str, present: Iterable[str], names: Sequence[str] | None):
    """Warn of classes that have no folder."""
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
    """Names of the folders, and of the image files, that lie directly in ``root``."""
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
    """Class names of ROOT/train for another split of ROOT: a class it lacks must not shift the labels."""
    train = os.path.join(os.path.dirname(root), 'train')
    if split in (None, 'train') or not os.path.isdir(train):
        return None
    return class_folders(train, frozenset())[0] or None


def warn_of_splits(root: str, folders: Iterable[str]):
    """Warn of a root whose folders are splits, all of which are used."""
    splits = sorted(SPLIT_NAMES.intersection(folders))
    if len(splits) > 1:
        print_log(
            f'{root} holds the splits {shorten(splits)} and the images of all are used; '
            "add split='train' to keep the others unseen",
            logger='current',
            level=logging.WARNING,
        )


def contents(folder: str) -> str:
    """What a folder holds, or the nearest one above that exists, for an error message."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(name for name in os.listdir(folder) if not skipped(name))
    return f'{folder} holds {shorten(names) if names else "nothing"}'


def no_images(folder: str, extensions: frozenset[str], others: Counter) -> str:
    """The message for a folder or an archive without images."""
    return (
        f'no images in {folder}: looked for {listed(extensions)}, found {shorten_counts(others)}; '
        'correct the folder or extend `extensions`'
        + (f"; for the images in the archives, roots='{folder}/*.tar'" if others['.tar'] else '')
    )


def shorten(names: Sequence[str], count: int = 8) -> str:
    """The first of many names, and how many there are."""
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


def shorten_counts(others: Counter) -> str:
    """What was found, the most frequent first."""
    return shorten([f'{count} {ending}' for ending, count in others.most_common()]) or 'nothing at all'


def listed(extensions: frozenset[str]) -> str:
    """File name endings as text."""
    return ' '.join('.' + extension for extension in sorted(extensions))


def skipped(name: str) -> bool:
    """Whether a file or folder is hidden, or something that a Mac leaves behind."""
    return name.startswith('.') or name == '__MACOSX'


def suffix(name: str) -> str:
    """A file name's ending in lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()
