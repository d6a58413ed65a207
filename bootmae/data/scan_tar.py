"""Scanning tar archives for images, with the rules of :mod:`bootmae.data.scan`.

Images are sorted by archive, and inside an archive as in the unpacked folder.
"""

import os
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..text import printable
from .findings import MISSING_IMAGE, DataFault, FileFinding, MissingData
from .lists import not_utf8
from .scan import (
    HIDDEN_FILE,
    HIDDEN_FOLDER,
    UNRESOLVED,
    Survey,
    class_findings,
    kind_of_file,
    no_images,
    shorten,
    skipped,
    suffix,
    unused,
)
from .tar import Place, index_tar, plain, tar_path

AMBIGUOUS = 'image in several archives'


@dataclass
class Packed:
    """The images below a folder of an archive.

    Attributes:
        archive: Path of the archive.
        folder: The folder with a slash at the end, '' for the whole archive.
        names: Names of the images relative to the folder.
        paths: Paths of the images, see :func:`tar_path`.
        others: What is not used, by ending.
        empty: Files of each first-level folder without an image, by ending.
    """

    archive: str
    folder: str
    names: list[str]
    paths: list[str]
    others: Counter
    empty: dict[str, Counter]

    @property
    def where(self) -> str:
        """Archive and folder, for messages."""
        return f'{self.archive}!/{self.folder}' if self.folder else self.archive

    def folders(self) -> set[str]:
        """Return the first-level folders that contain images."""
        return {name.partition('/')[0] for name in self.names if '/' in name}


def scan_tar(
    archive: str, extensions: frozenset[str], split: str | None = None, places: dict[str, Place | None] | None = None
) -> Packed:
    """Return the images of an archive.

    Args:
        archive: Path of the archive.
        extensions: File name endings of images.
        split: Folder to which the images are restricted.
        places: Index of the archive, if it is known already.

    Raises:
        FileNotFoundError: If the archive or the folder has no images. Says what it holds instead.
        ValueError: If the file is no complete uncompressed archive.
    """
    folder = f'{split.strip("/")}/' if split else ''
    places, others = index_tar(archive) if places is None else places, Counter()
    found: dict[str, Place] = {}
    of_folder, hidden = defaultdict(Counter), set()
    for name, place in places.items():
        if not name.startswith(folder):
            continue
        below = name[len(folder) :]
        parts = below.split('/')
        depth = next((depth for depth, part in enumerate(parts, 1) if skipped(part)), 0)
        if depth:
            hidden.add((tuple(parts[:depth]), depth < len(parts)))
        elif place is None or (kind := kind_of_file(parts[-1], extensions)):
            kind = UNRESOLVED if place is None else kind
            others[kind] += 1
            of_folder[parts[0] if len(parts) > 1 else ''][kind] += 1
        else:
            found[below] = place
    for _, is_folder in hidden:
        others[HIDDEN_FOLDER if is_folder else HIDDEN_FILE] += 1
    if folder and not found and not others:
        folders = sorted({name.partition('/')[0] for name in places if '/' in name})
        raise FileNotFoundError(
            f'split={split!r}: there is no folder {folder} in {archive}; it holds '
            f'{shorten(folders) or "no folders"}; choose one of these or leave split out'
        )
    if not found:
        raise FileNotFoundError(no_images(f'{archive}!/{folder}' if folder else archive, extensions, others))
    names = sorted(found, key=lambda name: name.replace('/', '\0'))  # the order of a walk through folders
    paths = [tar_path(archive, folder + name, *found[name]) for name in names]
    filled = {name.partition('/')[0] for name in names if '/' in name} | {''}
    empty = {name: counts for name, counts in of_folder.items() if name not in filled}
    return Packed(archive, folder, names, paths, others, empty)


def scan_tar_classes(
    archives: Sequence[str], extensions: frozenset[str], names: Sequence[str] | None, split: str | None = None
) -> Survey:
    """Scan archives for images with classes.

    Classes are the first-level folders of all archives together. If there are several archives without folders, classes
    are the names of the archives, as in ImageNet's train/n01440764.tar.

    Args:
        archives: Paths of the archives.
        extensions: File name endings of images.
        names: Classes in label order. By default those of the folder ``train`` beside ``split``, if there is one, else
            those that are found.
        split: Folder to which the images are restricted.

    Raises:
        ValueError: If the classes are ambiguous: one archive has no folders; numbered archives without folders look
            like shards; or a single folder contains all folders.
    """
    indexes = {archive: index_tar(archive) for archive in archives}
    parts = [scan_tar(archive, extensions, split, places) for archive, places in indexes.items()]
    names = names or _names_of_train(indexes, extensions, split)
    loose = [name for part in parts for name in part.names if '/' not in name]
    others, empty = sum((part.others for part in parts), Counter()), {}
    if len(loose) == sum(len(part.names) for part in parts):
        _check_flat(archives, names)
        loose = []
        classes = [[_stem(part.archive)] * len(part.names) for part in parts]
    else:
        classes = [[name.partition('/')[0] if '/' in name else '' for name in part.names] for part in parts]
        filled = {name for of_part in classes for name in of_part}
        empty = {name: counts for part in parts for name, counts in part.empty.items() if name not in filled}
    present, where = {name for part in classes for name in part} - {''}, shorten([part.where for part in parts])
    folders = sorted(present | empty.keys())
    findings = class_findings(where, folders, sorted(empty), loose, names, sum(empty.values(), Counter()))
    if names is None and len(folders) == 1 and not loose:
        _refuse_wrapper(where, folders[0], parts)
    names = tuple(names or folders)
    number = {name: label for label, name in enumerate(names)}
    images = ((part.paths, of_part) for part, of_part in zip(parts, classes))
    found = [(number.get(name), path) for paths, of_part in images for path, name in zip(paths, of_part)]
    # A stable sort, so archives keep their order inside a class.
    labeled = sorted((entry for entry in found if entry[0] is not None), key=lambda entry: entry[0])
    return Survey(
        [path for _, path in labeled],
        array('q', (label for label, _ in labeled)),
        names,
        [path for label, path in found if label is None],
        findings + unused(where, others),
    )


def find_members(archives: Sequence[str], split: str | None, names: Sequence[str], list_file: str) -> list[str]:
    """Return the paths of images by their names in the archives.

    Args:
        archives: Paths of the archives.
        split: Folder that the names are relative to.
        names: Names of the images; ``./a.jpg`` is ``a.jpg``.
        list_file: The list that contains the names, for messages.

    Raises:
        FileNotFoundError: If an image is in no archive. Names the list, the image and the archives.
        ValueError: If it is in several archives. Names them too.
    """
    places: dict[str, tuple[str, Place]] = {}
    several: dict[str, str] = {}  # names that an earlier archive has too, and the later one
    for archive in archives:
        for name, place in index_tar(archive).items():
            if place and places.setdefault(name, (archive, place))[0] != archive:
                several[name] = archive
    folder, paths = f'{split.strip("/")}/' if split else '', []
    for number, name in enumerate(names, 1):
        member, line = plain(folder + name), f'names {printable(name)} (image {number} of {len(names)}), which is'
        if member not in places:
            detail = (
                f'{line} not in {shorten(archives)}{not_utf8(name)}, where files are called such as '
                f'{shorten(list(places), 3) or "nothing"}: correct `roots`, `split` or the list'
            )
            raise MissingData([FileFinding(MISSING_IMAGE, list_file, detail)])
        archive, place = places[member]
        if member in several:
            detail = f'{line} both in {archive} and in {several[member]}: rename it in one of them, or give only one'
            raise DataFault([FileFinding(AMBIGUOUS, list_file, detail)])
        paths.append(tar_path(archive, member, *place))
    return paths


def _check_flat(archives: Sequence[str], names: Sequence[str] | None) -> None:
    """Raise a ValueError for archives without folders that cannot be classes."""
    stems = [_stem(archive) for archive in archives]
    if names is not None:
        return
    if len(set(stems)) == 1:
        raise ValueError(
            f"labels='folder', but {shorten(archives)} {'has' if len(stems) == 1 else 'have'} no folders, so there "
            f"would be one class, {stems[0]!r}: use list_file with labels='list', or one archive per class, named "
            'after it'
        )
    numbers = sorted(int(match[0]) for match in (re.search(r'\d+$', stem) for stem in stems) if match)
    if len(set(map(_unnumbered, stems))) == 1 and numbers == list(range(numbers[0], numbers[0] + len(stems))):
        raise ValueError(
            f"labels='folder', but {shorten(archives)} have no folders and look like shards rather than "
            f"classes: use list_file with labels='list', or name the archives that are classes in "
            f'`classes`: {shorten(stems)}'
        )


def _refuse_wrapper(where: str, name: str, parts: Sequence[Packed]):
    inside = sorted({'/'.join(image.split('/')[1:-1]) for part in parts for image in part.names} - {''})
    if len(inside) > 1:
        raise ValueError(
            f"labels='folder', but all images of {where} lie in one folder, {name}, whose folders look "
            f'like the classes ({shorten(inside)}): add split={name!r}'
        )


def _names_of_train(indexes: dict[str, dict], extensions: frozenset[str], split: str | None) -> list[str] | None:
    """Return the class names of ``train`` beside the split, where a missing class must not shift the labels."""
    parent, _, last = (split or '').strip('/').rpartition('/')
    if last in ('', 'train'):
        return None
    train = f'{parent}/train/' if parent else 'train/'
    below = (
        name[len(train) :]
        for places in indexes.values()
        for name in places
        if name.startswith(train) and suffix(name) in extensions
    )
    return sorted({name.partition('/')[0] for name in below if '/' in name}) or None


def _stem(archive: str) -> str:
    return os.path.splitext(os.path.basename(archive))[0]


def _unnumbered(stem: str) -> str:
    return re.sub(r'\d+$', '', stem)
