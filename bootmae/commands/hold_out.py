"""Split a folder of class folders into training and validation images by links; nothing is copied or moved."""

import os
import tempfile
from collections.abc import Sequence

import numpy as np

from ..data.scan import EXTENSIONS, SPLIT_NAMES, class_folders, contents, scan_classes, shorten, skipped
from ..data.subsets import held_out
from ..text import count_of

Links = dict[str, str]  # path in OUT -> target, relative to the folder of the link


def split_folder(source: str, out: str, share: float, seed: int = 0) -> str:
    """Create relative links ``out``/train/<class> and ``out``/val/<class> to the images in ``source``/<class>.

    Each image is in exactly one of the two. ``out`` is created completely or not at all. If it already holds this
    split, nothing changes.

    Args:
        source: folder with one folder per class; subfolders of a class are kept.
        out: empty or new folder outside ``source``.
        share: fraction of the images of each class that goes to val, rounded, at least one and never all.
        seed: random seed of the split.

    Returns:
        A message for the user.

    Raises:
        ValueError, FileNotFoundError: naming the folder, the value and the remedy.
    """
    source, out = os.path.realpath(os.path.expanduser(source)), os.path.realpath(os.path.expanduser(out))
    _check_places(source, out)
    links, summary = plan(source, out, share, seed)
    if _holds(out, links, source):
        return f'{out} already holds this split: {summary}'
    parent, name = os.path.split(out)
    os.makedirs(parent, exist_ok=True)
    # A hidden name, so that a later scan does not take the leftovers of a killed process for a class.
    with tempfile.TemporaryDirectory(prefix=f'.{name}.', dir=parent) as unfinished:
        built = os.path.join(
            unfinished, name
        )  # unlike the temporary folder itself, this folder is accessible to other users
        _write(built, links)
        try:
            os.rename(built, out)
        except OSError:
            if not _holds(out, links, source):  # else another process has just created the same split
                raise
    return f'{out}: {summary}'


def plan(source: str, out: str, share: float, seed: int) -> tuple[Links, str]:
    """Return all links of the split of ``source`` for ``out`` (both resolved paths), and a summary."""
    paths, labels, names = _scan(source)
    if single := [names[label] for label in np.flatnonzero(np.bincount(labels) == 1)]:
        raise ValueError(
            f'{count_of(len(single), "class has", "classes have")} only one image in {source}, which cannot be in both '
            f'train and val: {shorten(single)}; add images there, or remove it'
        )
    val = held_out(labels, share, seed)
    links = {}
    for path, held in zip(paths, val):
        link = os.path.join('val' if held else 'train', os.path.relpath(path, source))
        links[link] = os.path.relpath(path, os.path.dirname(os.path.join(out, link)))
    return links, (
        f'{count_of(len(paths) - int(val.sum()), "image")} in train, {val.sum():,} in val, '
        f'{count_of(len(names), "class", "classes")} '
        f'(of {source}, share {share}, seed {seed})'
    )


def _check_places(source: str, out: str) -> None:
    if not os.path.isdir(source):
        what = 'is a file, not a folder: unpack it' if os.path.exists(source) else 'does not exist'
        raise FileNotFoundError(f'SOURCE {source} {what}; {contents(os.path.dirname(source))}')
    if os.path.commonpath([source, out]) == source:
        raise ValueError(
            f'OUT {out} is inside SOURCE {source}, where it would count as a class: choose a folder outside'
        )
    if os.path.lexists(out) and not os.path.isdir(out):
        raise ValueError(f'OUT {out} is a file: give a folder')


def _scan(source: str) -> tuple[list[str], Sequence[int], Sequence[str]]:
    """Return the images, labels and class names of a folder of class folders.

    Raises:
        ValueError: if there are no class folders, or two paths lead to the same file.
    """
    extensions = frozenset(EXTENSIONS)
    folders = class_folders(source)
    if not folders:
        raise ValueError(f'SOURCE {source} has no class folders; {contents(source)}')
    if set(folders) <= SPLIT_NAMES:
        train = os.path.join(source, 'train' if 'train' in folders else folders[0])
        raise ValueError(
            f'the folders of SOURCE {source} are splits, not classes: {shorten(folders)}; '
            f'split the training images, such as {train}'
        )
    found = scan_classes(source, extensions).settle()
    seen = {}
    for path in found.paths:
        status = os.stat(path)
        other = seen.setdefault((status.st_dev, status.st_ino), path)
        if other != path:
            raise ValueError(
                f'{other} and {path} are the same file, which could end up in both train and val: remove one of them'
            )
    return found.paths, found.labels, found.names


def _holds(out: str, links: Links, source: str) -> bool:
    """Whether ``out`` holds exactly these links; False if it is empty or missing.

    Raises:
        ValueError: if it has any other content.
    """
    if not os.path.isdir(out) or not os.listdir(out):
        return False
    found = {}
    for folder, folders, files in os.walk(out):
        folders[:] = [name for name in folders if not skipped(name)]
        for path in (os.path.join(folder, name) for name in [*files, *folders] if not skipped(name)):
            if os.path.islink(path) or not os.path.isdir(path):
                found[os.path.relpath(path, out)] = os.readlink(path) if os.path.islink(path) else None
    if found != links:
        raise ValueError(
            f'OUT {out} is not empty and does not hold this split of {source} (other images, share or seed): '
            'remove it or choose another folder'
        )
    return True


def _write(folder: str, links: Links) -> None:
    for place in {os.path.dirname(link) for link in links}:
        os.makedirs(os.path.join(folder, place), exist_ok=True)
    for link, target in links.items():
        os.symlink(target, os.path.join(folder, link))
