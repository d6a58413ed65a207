"""Scanning folders: images, their order and classes, and what is wrong with folders that do not fit."""

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import cv2

from ..text import count_of, printable
from .findings import CLASS_ABSENT, EMPTY_CLASS, FILES_UNUSED, SPLITS_TOGETHER, FileFinding, settle

# What OpenCV, which decodes the images, reads as photographs; the last two depend on how it was built.
EXTENSIONS = (
    *('jpg', 'jpeg', 'jpe', 'jfif', 'png', 'webp', 'bmp', 'tif', 'tiff', 'ppm', 'pgm', 'pbm', 'pnm'),
    *(ending for ending in ('jp2', 'avif') if cv2.haveImageWriter(f'.{ending}')),
)
SPLIT_NAMES = {'train', 'val', 'test', 'valid', 'validation'}
LOOSE, NO_CLASSES, UNKNOWN_CLASS = (
    'images outside class folders',
    'splits instead of classes',
    'class that training does not have',
)
HIDDEN_FILE, HIDDEN_FOLDER, BROKEN_LINK, UNRESOLVED, READ_BEFORE, NO_ENDING = (
    'hidden file',
    'hidden folder',
    'broken link',
    'unresolved link',
    'folder already read under another name',
    'file without ending',
)
PLURALS = {READ_BEFORE: 'folders already read under another name', NO_ENDING: 'files without ending'}


@dataclass
class Survey:
    """The images of a data set.

    Attributes:
        paths: Paths of the images.
        labels: Their labels, None for unlabeled images.
        names: Class names in label order, None if they are not known.
        loose: Paths of images that belong to no class.
        findings: What is wrong with the folders, and which files are not used.
    """

    paths: list[str]
    labels: Sequence[int] | None = None
    names: Sequence[str] | None = None
    loose: list[str] = field(default_factory=list)
    findings: list[FileFinding] = field(default_factory=list)

    def settle(self) -> 'Survey':
        """Log the notes, and refuse the data set if there is a fault; see :func:`bootmae.data.findings.settle`."""
        settle(self.findings, [*self.paths, *self.loose])
        return self


def scan_folders(
    folders: Sequence[str],
    extensions: frozenset[str],
    visited: set | None = None,
    findings: list[FileFinding] | None = None,
) -> list[str]:
    """Return the paths of all images below the folders.

    Args:
        folders: The folders, in order.
        extensions: File name endings of images.
        visited: Folders that earlier calls have scanned, to be skipped; new ones are added.
        findings: Gets a note about the files that are not used.

    Raises:
        FileNotFoundError: If a folder has no image. Says what it holds instead.
    """
    paths, visited = [], set() if visited is None else visited
    for folder in folders:
        before, others = len(paths), Counter()
        _scan(folder, extensions, visited, paths, others)
        if len(paths) == before:
            raise FileNotFoundError(no_images(folder, extensions, others))
        if findings is not None:
            findings += unused(folder, others)
    return paths


def scan_classes(root: str, extensions: frozenset[str], names: Sequence[str] | None = None) -> Survey:
    """Scan a folder of class folders.

    Args:
        root: The folder.
        extensions: File name endings of images.
        names: Classes in label order. By default the folders in name order.

    Raises:
        FileNotFoundError: If there is no image at all. Says what the folder holds instead.
    """
    folders, loose, others = first_level(root, extensions)
    found, empty, in_empty = Survey([], array('q'), tuple(names or folders)), [], Counter()
    for name in folders:
        before, of_class = len(found.paths), Counter()
        # `visited` is not shared, since two class folders may be links to the same folder.
        _scan(os.path.join(root, name), extensions, set(), found.paths, of_class)
        if len(found.paths) == before:
            empty.append(name)
            in_empty += of_class
        others += of_class
    found.loose = [os.path.join(root, name) for name in loose]
    if not found.paths and not found.loose:
        raise FileNotFoundError(no_images(root, extensions, others))
    found.findings = class_findings(root, folders, empty, loose, names, in_empty) + unused(root, others)
    return _in_label_order(found, root)


def _in_label_order(found: Survey, root: str) -> Survey:
    """Label the images of folders in name order, and sort them by label; leave out folders that are no classes."""
    number = {name: label for label, name in enumerate(found.names)}
    heads = (os.path.relpath(path, root).partition(os.sep)[0] for path in found.paths)
    labeled = [(number[head], path) for head, path in zip(heads, found.paths) if head in number]
    labeled.sort(key=lambda entry: entry[0])  # stable, so the order inside a class stays
    found.labels, found.paths = array('q', (label for label, _ in labeled)), [path for _, path in labeled]
    return found


def class_findings(
    where: str,
    folders: Sequence[str],
    empty: Sequence[str],
    loose: Sequence[str],
    names: Sequence[str] | None,
    in_empty: Counter,
) -> list[FileFinding]:
    """Say what is wrong with class folders: faults that training refuses, and classes without a folder.

    Args:
        where: Folder or archive.
        folders: All first-level folders.
        empty: Those without images.
        loose: Images outside these folders.
        names: Classes in label order, None if the folders are the classes.
        in_empty: The files of the empty folders, by ending.
    """
    found = []
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if (len(splits) > 1 or (splits and len(splits) == len(folders))) and not set(splits).intersection(names or ()):
        first = next((name for name in splits if name.lower() == 'train'), splits[0])
        detail = (
            f"labels='folder', but these folders look like splits, not classes: {shorten(splits)}; add split={first!r}"
        )
        return [FileFinding(NO_CLASSES, where, detail)]
    if loose:
        detail = (
            f'{count_of(len(loose), "image")} outside class folders, such as {loose[0]}: sort them into one folder '
            "per class, or use list_file with labels='list' (the validation images of ImageNet are delivered flat)"
        )
        found.append(FileFinding(LOOSE, where, detail))
    if unknown := sorted(set(folders) - set(names)) if names else []:
        detail = (
            f'{count_of(len(unknown), "folder")} not among the {count_of(len(names), "class", "classes")}: '
            f'{shorten(unknown)}; remove what is no class, or correct `classes` (by default, with `split`, the folders '
            'of ROOT/train; with two paths of --data, those of the first)'
        )
        found.append(FileFinding(UNKNOWN_CLASS, where, detail))
    if empty := [name for name in empty if name not in unknown]:
        detail = (
            f'no images in {count_of(len(empty), "class folder")}: {shorten(empty)}; fill or remove '
            f'{"it" if len(empty) == 1 else "them"} (other files there: {shorten_counts(in_empty)})'
        )
        found.append(FileFinding(EMPTY_CLASS, where, detail))
    if absent := [name for name in names or () if name not in folders]:
        detail = f'no folder for {len(absent)} of {count_of(len(names), "class", "classes")}: {shorten(absent)}'
        found.append(FileFinding(CLASS_ABSENT, where, detail))
    return found


def unused(where: str, others: Counter) -> list[FileFinding]:
    """Return a note about the files that are not used, by ending; nothing if all are used."""
    return [FileFinding(FILES_UNUSED, where, f'not used: {shorten_counts(others, 12)}')] if others else []


def _scan(folder: str, extensions: frozenset[str], visited: set, paths: list[str], others: Counter):
    """Append the images below ``folder`` to ``paths`` and count everything else by ending in ``others``."""
    status = os.stat(folder)
    key = (status.st_dev, status.st_ino)
    if key in visited:  # a link back to a parent, or a second way to the same folder
        others[READ_BEFORE] += 1
        return
    visited.add(key)
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda e: e.name)
    for entry in entries:
        if kind := other_kind(entry, extensions):
            others[kind] += 1
        elif entry.is_dir():
            _scan(entry.path, extensions, visited, paths, others)
        else:
            paths.append(entry.path)


def other_kind(entry: os.DirEntry, extensions: frozenset[str]) -> str | None:
    """Return what an entry of a folder counts as if it is not used; None for images and for folders to scan."""
    if skipped(entry.name):
        return HIDDEN_FOLDER if entry.is_dir() else HIDDEN_FILE
    if entry.is_dir():
        return None
    return kind_of_file(entry.name, extensions) if entry.is_file() else BROKEN_LINK


def kind_of_file(name: str, extensions: frozenset[str]) -> str | None:
    """Return what a visible file counts as if it is not used; None for an image."""
    ending = suffix(name)
    return None if ending in extensions else f'.{ending}' if ending else NO_ENDING


def first_level(root: str, extensions: frozenset[str]) -> tuple[list[str], list[str], Counter]:
    """Return the names of the folders and of the images directly in ``root``, and what else is there."""
    folders, loose, others = [], [], Counter()
    with os.scandir(root) as entries:
        for entry in entries:
            if kind := other_kind(entry, extensions):
                others[kind] += 1
            else:
                (folders if entry.is_dir() else loose).append(entry.name)
    return sorted(folders), sorted(loose), others


def class_folders(root: str) -> list[str]:
    """Return the names of the folders in ``root`` that are not hidden."""
    return first_level(root, frozenset())[0]


def classes_of_train(root: str, split: str | None) -> list[str] | None:
    """Return the class names of ROOT/train for another split, where a missing class must not shift the labels."""
    train = os.path.join(os.path.dirname(root), 'train')
    if split in (None, 'train') or not os.path.isdir(train):
        return None
    return class_folders(train) or None


def splits_together(root: str, folders: Iterable[str]) -> list[FileFinding]:
    """Return a note about a root that contains several splits, which are all used."""
    splits = sorted(SPLIT_NAMES.intersection(folders))
    if len(splits) < 2:
        return []
    detail = f"the images of the splits {shorten(splits)} are all used; add split='train' to keep the others unseen"
    return [FileFinding(SPLITS_TOGETHER, root, detail)]


def contents(folder: str) -> str:
    """List a folder, or its nearest existing parent, for an error message."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(name for name in os.listdir(folder) if not skipped(name))
    return f'{folder} holds {shorten(names) if names else "nothing"}'


def no_images(folder: str, extensions: frozenset[str], others: Counter) -> str:
    """Return the message for a folder or an archive without images."""
    return (
        f'no images in {printable(folder)}: looked for {listed(extensions)}, found {shorten_counts(others)}; '
        'correct the folder or extend `extensions`'
        + ('; the setting image_channels reads .npy files (docs/channels.md)' if others['.npy'] else '')
        + (f"; for the images in the archives, roots='{folder}/*.tar'" if others['.tar'] else '')
    )


def shorten(names: Collection[str], count: int = 8) -> str:
    """Join the first names, and say how many there are."""
    shown = ', '.join(printable(name) for name in list(names)[:count])
    return shown + (f', ... ({len(names)} in all)' if len(names) > count else '')


def shorten_counts(others: Counter, count: int = 8) -> str:
    """Join counts of file name endings, the most frequent first."""
    ordered = sorted(others.items(), key=lambda entry: (-entry[1], entry[0]))
    return shorten([_counted(kind, number) for kind, number in ordered], count) or 'nothing'


def _counted(kind: str, number: int) -> str:
    return f'{number:,} {kind}' if kind.startswith('.') else count_of(number, kind, PLURALS.get(kind))


def listed(extensions: frozenset[str]) -> str:
    """Join file name endings."""
    return ' '.join('.' + extension for extension in sorted(extensions))


def skipped(name: str) -> bool:
    """Return whether a file or folder is hidden or a resource folder of macOS."""
    return name.startswith('.') or name == '__MACOSX'


def suffix(name: str) -> str:
    """Return the ending of a file name in lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()
