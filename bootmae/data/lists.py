"""Text files about images: lists of paths, with or without labels, and class names."""

import os
import re
from array import array

from ..text import printable
from .findings import MISSING_IMAGE, DataFault, FileFinding, MissingData
from .scan import contents, listed, shorten, suffix
from .subsets import spread

NUM_SPOT_CHECKS = 100
WRONG_LINE = 'list of images'


def read_list(list_file: str, root: str, extensions: frozenset[str], labeled: bool):
    """Read a list file.

    Args:
        list_file: Path of the list.
        root: Folder that relative paths start at.
        extensions: File name endings of images.
        labeled: Whether lines end with a label.

    Returns:
        Paths, and labels or None.

    Raises:
        FileNotFoundError, ValueError: Names the list, the line and the error.
    """
    if not os.path.isfile(list_file):
        raise FileNotFoundError(
            f'list_file {os.path.abspath(list_file)} is not a file; '
            f'{contents(os.path.dirname(os.path.abspath(list_file)))}'
        )
    _refuse_other_text(list_file)
    paths, labels = [], array('q')
    # Names of files need not be valid UTF-8, so other bytes stay; `_not_utf8` finds them if there is no such file.
    with open(list_file, encoding='utf-8-sig', errors='surrogateescape') as lines:
        for number, line in enumerate(lines, 1):
            entry = line.strip()
            if not entry:
                continue
            if labeled:
                entry, label = _split_label(entry, list_file, number)
                labels.append(label)
            if suffix(entry) not in extensions:
                raise _wrong_line(list_file, number, _not_an_image(entry, extensions, labeled))
            paths.append(os.path.join(root, entry))
    if not paths:
        raise _wrong_line(list_file, 0, 'no image in it: write one path per line')
    return paths, labels if labeled else None


def folder_of_list(list_file: str) -> str:
    """Return the folder that the relative paths of a list start at if no root is given."""
    return os.path.dirname(os.path.abspath(list_file))


def _refuse_other_text(list_file: str) -> None:
    with open(list_file, 'rb') as file:
        head = file.read(4096)
    if head[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise _wrong_line(list_file, 0, 'UTF-16, not UTF-8: save it as UTF-8 (PowerShell: Out-File -Encoding utf8)')
    if b'\0' in head:
        raise _wrong_line(list_file, 0, 'no text: give a list with one path per line')


def read_classes(file: str) -> list[str]:
    """Read class names, one a line, in label order.

    Raises:
        FileNotFoundError, ValueError: Names the file and what is wrong with it.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f'classes={file} is not a file; {contents(os.path.dirname(os.path.abspath(file)))}; give a file with one '
            'class name per line, or a list of names'
        )
    try:
        with open(file, encoding='utf-8-sig') as lines:
            names = [line.rstrip('\n\r') for line in lines]
    except UnicodeDecodeError as error:
        raise ValueError(f'classes={file} is not UTF-8 text ({error.reason}): save it as UTF-8') from error
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        fault = f'names {shorten([name or "(an empty line)" for name in twice])} twice' if twice else 'names no class'
        raise ValueError(f'classes={file} {fault}: give one class name per line, in label order')
    return names


def not_utf8(name: str) -> str:
    """Return a hint for a name in a list that does not exist and is not valid UTF-8, '' for other names."""
    plain = all(not '\udc80' <= character <= '\udcff' for character in name)
    return '' if plain else ' (the list is not valid UTF-8 there: save it as UTF-8)'


def _wrong_line(list_file: str, number: int, detail: str) -> DataFault:
    return DataFault([FileFinding(WRONG_LINE, f'{list_file}:{number}' if number else list_file, detail)])


def _split_label(entry: str, list_file: str, number: int) -> tuple[str, int]:
    path, *label = entry.rsplit(None, 1)
    if not label or not re.fullmatch(r'-?[0-9]+', label[0]):
        detail = (
            f"no integer label at the end of {entry!r}; labels='list' wants 'path label' on each line, use labels=None "
            'for a list without labels'
        )
        raise _wrong_line(list_file, number, detail)
    if int(label[0]) < 0:
        raise _wrong_line(list_file, number, f'label {label[0]} is negative; labels count from 0')
    return path, int(label[0])


def _not_an_image(entry: str, extensions: frozenset[str], labeled: bool) -> str:
    head, *tail = entry.rsplit(None, 1)
    if not labeled and tail and suffix(head) in extensions:
        return f"{entry!r} has {tail[0]!r} after the file name; if that is the label, use labels='list'"
    return f'{entry!r} does not end like an image ({listed(extensions)}); correct the line or extend `extensions`'


def check_exist(paths: list[str], list_file: str, root: str, how_many: str) -> None:
    """Raise a FileNotFoundError if a file of a list is missing; ``how_many`` is 'some', 'all' or 'none'."""
    if how_many == 'none':
        return
    last = len(paths) - 1  # truncated and extended lists show their error at the end
    chosen = [*spread(len(paths), NUM_SPOT_CHECKS), last] if how_many == 'some' else range(len(paths))
    odd = [i for i, path in enumerate(paths) if not_utf8(path)] if how_many == 'some' else []
    for i in [*chosen, *odd]:
        if not os.path.isfile(paths[i]):
            detail = (
                f'names {printable(paths[i])} (image {i + 1} of {len(paths)}), which does not exist'
                f'{not_utf8(paths[i])}; relative paths start at {root}: correct `roots` or the list'
            )
            raise MissingData([FileFinding(MISSING_IMAGE, list_file, detail)], paths)
