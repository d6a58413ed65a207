"""The roots of a data set: folders and tar archives, given by path, by pattern, or as a numbered range."""

import glob
import os
import re
from collections.abc import Sequence
from itertools import pairwise

from ..text import printable
from .scan import contents

RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')
ARCHIVE = re.compile(r'\.(tar|tgz|tbz2?|txz|tar\.\w+)$', re.IGNORECASE)


def resolve_roots(roots: str | Sequence[str], split: str | None) -> list[str]:
    """Resolve roots to existing folders and archives.

    Args:
        roots: One root or several. ``~`` is the home folder, ``*``, ``?`` and ``[...]`` match names, and ``{000..146}``
            stands for a range of numbers.
        split: Folder inside each root that is a folder. Readers of archives apply it themselves.

    Raises:
        FileNotFoundError: If a root is missing.
        ValueError: If a root is empty, counts down, is a file but no archive, or lies inside another one.
    """
    several = [roots] if isinstance(roots, (str, os.PathLike)) else list(roots)
    if not several or '' in several:
        raise ValueError(f'roots={roots!r} names no folder: give the folder that holds the images')
    for root in map(str, several):
        if printable(root) != root:
            raise ValueError(
                f'roots={printable(root)} is not valid UTF-8 text, and a run stores its config as such: rename the '
                'folder, or give a link to it with a plain name (the names below it may be any)'
            )
    found = [_resolve(root, split) for pattern in several for root in _expand(os.path.expanduser(pattern))]
    parts = sorted((os.path.realpath(root).rstrip(os.sep).split(os.sep), root) for root in found)
    for (outer, one), (inner, other) in pairwise(parts):  # a folder is sorted directly before its contents
        if inner[: len(outer)] == outer:
            raise ValueError(f'roots {one} and {other} overlap, so images would count twice: remove one of them')
    return found


def _expand(pattern: str) -> list[str]:
    """Return the paths that match a pattern, or the text itself if it is no pattern."""
    if os.path.lexists(pattern):
        return [pattern]
    if counted := RANGE.search(pattern):
        first, last = counted.groups()
        if int(first) > int(last):
            raise ValueError(f'roots={pattern} counts down: give the lower number first, {{{last}..{first}}}')
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        return [
            path
            for number in numbers
            for path in _expand(pattern[: counted.start()] + number + pattern[counted.end() :])
        ]
    if not glob.has_magic(pattern):
        return [pattern]
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise FileNotFoundError(
            f'roots={pattern} matches nothing; {contents(os.path.dirname(os.path.abspath(pattern)))}'
        )
    return paths


def _resolve(root: str, split: str | None) -> str:
    if os.path.isfile(root):
        if ARCHIVE.search(root):
            return root
        raise ValueError(
            f'roots={root} is a file, not a folder or a .tar archive: give the folder that holds the '
            'images; lists go to list_file, other archives must be unpacked'
        )
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f'roots={root} does not exist (looked for {os.path.abspath(root)}); '
            f'{contents(os.path.dirname(os.path.abspath(root)))}'
        )
    if not split:
        return root
    folder = os.path.join(root, split.strip('/'))
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f'split={split!r}: there is no folder {folder}; {contents(root)}; choose one of these or leave split out'
        )
    return folder
