"""A folder of class folders divided into training and validation images, as links: nothing is copied or moved."""

import os
import tempfile
from collections.abc import Sequence

import numpy as np

from ..data.scan import EXTENSIONS, SPLIT_NAMES, class_folders, contents, scan_classes, shorten, skipped
from ..data.subsets import held_out

Links = dict[str, str]  # place below OUT -> target, relative to the folder of the link


def divide(source: str, out: str, share: float, seed: int = 0) -> str:
    """Write ``out``/train/<class> and ``out``/val/<class> as relative links to the images below ``source``/<class>.

    Each image is in exactly one of them. ``out`` appears at once or not at all; where it is this division already,
    nothing is touched.

    Args:
        source: folder with one folder a class; folders within those are kept.
        out: folder that is empty or does not exist, not inside ``source``.
        share: of each class's images that go to val, rounded, at least one and never all.
        seed: draws them.

    Returns:
        What was done, for people.

    Errors: ValueError or FileNotFoundError naming the folder, the value and the remedy.
    """
    source, out = os.path.realpath(os.path.expanduser(source)), os.path.realpath(os.path.expanduser(out))
    _check_places(source, out)
    links, summary = plan(source, out, share, seed)
    if _is_there(out, links, source):
        return f'{out} is this division already: {summary}'
    parent, name = os.path.split(out)
    os.makedirs(parent, exist_ok=True)
    # Hidden, so that what a kill leaves is no class folder for a later scan.
    with tempfile.TemporaryDirectory(prefix=f'.{name}.', dir=parent) as unfinished:
        built = os.path.join(unfinished, name)  # the temporary folder itself is closed to others, this one is not
        _write(built, links)
        try:
            os.rename(built, out)
        except OSError:
            if not _is_there(out, links, source):  # else another process has just done the same
                raise
    return f'{out}: {summary}'


def plan(source: str, out: str, share: float, seed: int) -> tuple[Links, str]:
    """All links of the division of ``source`` for ``out``, both real paths, and a line that sums them up."""
    paths, labels, names = _scan(source)
    if single := [names[label] for label in np.flatnonzero(np.bincount(labels) == 1)]:
        raise ValueError(
            f'{len(single)} classes of {source} have a single image, which cannot be both in training and '
            f'held out: {shorten(single)}; add images to them, or leave them out'
        )
    val = held_out(labels, share, seed)
    links = {}
    for path, held in zip(paths, val):
        link = os.path.join('val' if held else 'train', os.path.relpath(path, source))
        links[link] = os.path.relpath(path, os.path.dirname(os.path.join(out, link)))
    return links, (
        f'{len(paths) - val.sum():,} images in train, {val.sum():,} in val, {len(names)} classes '
        f'(of {source}, share {share}, seed {seed})'
    )


def _check_places(source: str, out: str) -> None:
    if not os.path.isdir(source):
        what = 'is a file, not a folder: unpack it' if os.path.exists(source) else 'does not exist'
        raise FileNotFoundError(f'SOURCE {source} {what}; {contents(os.path.dirname(source))}')
    if os.path.commonpath([source, out]) == source:
        raise ValueError(f'OUT {out} lies in SOURCE {source}, where it would count as a class: name a folder beside it')
    if os.path.lexists(out) and not os.path.isdir(out):
        raise ValueError(f'OUT {out} is a file: name a folder')


def _scan(source: str) -> tuple[list[str], Sequence[int], Sequence[str]]:
    """Images, labels and class names of a folder of class folders, each file once."""
    extensions = frozenset(EXTENSIONS)
    folders, _ = class_folders(source, extensions)
    if not folders:
        raise ValueError(f'SOURCE {source} has no class folders, one for each class; {contents(source)}')
    if set(folders) <= SPLIT_NAMES:
        train = os.path.join(source, 'train' if 'train' in folders else folders[0])
        raise ValueError(
            f'the folders of SOURCE {source} are splits, not classes: {shorten(folders)}; '
            f'divide the training images, such as {train}'
        )
    paths, labels, names = scan_classes(source, extensions)
    seen = {}
    for path in paths:
        status = os.stat(path)
        other = seen.setdefault((status.st_dev, status.st_ino), path)
        if other != path:
            raise ValueError(
                f'{other} and {path} are the same file, which could be in training and held out at once: '
                'remove one of the two'
            )
    return paths, labels, names


def _is_there(out: str, links: Links, source: str) -> bool:
    """Whether ``out`` holds exactly these links, rather than nothing.

    Errors: ValueError if it holds anything else.
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
            f'OUT {out} is not empty and holds something else than this division of {source} '
            '(other images, another share or seed): remove it, or name another folder'
        )
    return True


def _write(folder: str, links: Links) -> None:
    for place in {os.path.dirname(link) for link in links}:
        os.makedirs(os.path.join(folder, place), exist_ok=True)
    for link, target in links.items():
        os.symlink(target, os.path.join(folder, link))
