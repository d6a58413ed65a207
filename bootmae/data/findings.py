"""Findings about data: faults, which no run may start with, and notes.

A fault would stop a run or corrupt it. A note is about something that is read correctly but unusual.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.logging import print_log

from ..text import count_of, printable

HUGE = 100_000_000  # pixels
TINY = 16  # pixels on the shorter side, the size of a patch
ORIENTED = 'EXIF orientation of an annotated image'
EVALUATOR_FILE = 'annotation file of the evaluator'
OTHER_SIZE, MASK_SIZE = 'size differs from the annotation', 'mask of another size'
MISSING_MASK, MASK_CHANNELS, LABEL_OUTSIDE = FAULTS_OF_MASKS = (
    'missing mask',
    'mask with several channels',
    'label outside the classes',
)

NARROW_SET = 'values fill a small part of their range'
CLIPPED_SET = 'values outside of image_channels.ranges'
UNREADABLE = 'unreadable'
# kinds of findings that are notes and not faults
CMYK, SIXTEEN_BIT, NARROW_RANGE, EXIF_TURNED, SMALL, LARGE, JPEG_WARNING = NOTES_OF_IMAGES = (
    'CMYK',
    '16-bit',
    '16-bit, mostly unused',
    'EXIF-rotated',
    f'tiny (below {TINY} pixels)',
    f'huge (above {HUGE // 10**6} megapixels)',
    'JPEG with extraneous bytes',
)
CLASS_ABSENT, DUPLICATE_WITHIN, IMAGE_UNUSED, NOT_FILES, COMPLETED, LEFT_OUT, OTHER_CATEGORIES = NOTES_OF_SETS = (
    'class absent',
    'duplicate within a split',
    'image not in the annotation file',
    'not image files',
    'keys that the annotations lack',
    'left out by the loader',
    'categories that are not classes',
)
FILES_UNUSED, SPLITS_TOGETHER, DARK_IMAGES = NOTES_OF_FOLDERS = (
    'files not used',
    'splits used together',
    'images that are almost black',
)
NOTES = frozenset(NOTES_OF_IMAGES + NOTES_OF_SETS + NOTES_OF_FOLDERS)
EMPTY_CLASS, MISSING_IMAGE = MISSING = ('class folder without images', 'missing image')


@dataclass(frozen=True)
class FileFinding:
    """A finding about a file or a folder: its kind, the path, details, and the split (set by the scan).

    Path and details are printable, even if the name of the file is not valid UTF-8.
    """

    kind: str
    path: str
    detail: str = ''
    split: str = ''

    def __post_init__(self):
        object.__setattr__(self, 'path', printable(self.path))
        object.__setattr__(self, 'detail', printable(self.detail))

    @property
    def line(self) -> str:
        """The finding in one line, as training and ``tools/verify_data.py`` show it."""
        return f'{self.path}: {self.detail}' if self.detail else self.path

    @property
    def fault(self) -> bool:
        return self.kind not in NOTES


class DataFault(ValueError):
    """A data set that training and evaluation refuse.

    Attributes:
        findings: All findings about the data set.
        paths: The images that were found nevertheless.
    """

    def __init__(self, findings: Sequence[FileFinding], paths: Sequence[str] = (), with_kind: bool = False):
        """``with_kind`` says the kind of the first fault too, where its details do not."""
        self.findings, self.paths = list(findings), list(paths)
        first, *others = (finding for finding in findings if finding.fault)
        more = f' (and {count_of(len(others), "more fault")}: tools/verify_data.py lists all)' if others else ''
        super().__init__((f'{first.path}: {first.kind}: {first.detail}' if with_kind else first.line) + more)


class MissingData(DataFault, FileNotFoundError):
    """A data set that lacks images."""


def settle(findings: Sequence[FileFinding], paths: Sequence[str] = ()) -> None:
    """Log the notes, and refuse the data set if there is a fault.

    Raises:
        DataFault: Names the first fault.
    """
    if faults := [finding for finding in findings if finding.fault]:
        raise (MissingData if faults[0].kind in MISSING else DataFault)(findings, paths)
    for finding in findings:
        print_log(finding.line, logger='current', level=logging.WARNING)
