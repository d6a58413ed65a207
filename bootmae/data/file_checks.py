"""Checks of single files: images, segmentation masks and COCO annotations.

A fault would stop a run or corrupt it. A note is about a file that is read correctly but unusual. Images are decoded as
in training (OpenCV, with the EXIF orientation applied), and with Pillow, which detects truncated files.
"""

import contextlib
import hashlib
import io
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ..text import printable
from .jpeg import END, START, is_whole
from .tar import is_tar_path, read_tar_path, readable
from .value_range import ValueRange, stored_values, value_range

TINY = 16  # pixels on the shorter side, the size of a patch
HUGE = 100_000_000  # pixels
READABLE = 2**30  # pixels, the limit of OpenCV
ORIENTATION = 0x0112  # EXIF tag
TURNED = range(2, 9)  # values of that tag that rotate or mirror an image
TOLERANCE = 1.0  # pixels by which boxes and polygons may exceed their image, since published sets round

NARROW_SET = 'values fill a small part of their range'
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
CLASS_ABSENT, DUPLICATE_WITHIN, IMAGE_UNUSED, NOT_FILES = NOTES_OF_SETS = (
    'class absent',
    'duplicate within a split',
    'image not in the annotation file',
    'not image files',
)
FILES_UNUSED, SPLITS_TOGETHER, DARK_IMAGES = NOTES_OF_FOLDERS = (
    'files not used',
    'splits used together',
    'images that are almost black',
)
NOTES = frozenset(NOTES_OF_IMAGES + NOTES_OF_SETS + NOTES_OF_FOLDERS)


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


@dataclass(frozen=True)
class Job:
    """Files to check together.

    Args:
        image: Path of an image.
        mask: Path of its segmentation mask, if it has one.
        allowed: Label values that may occur in the mask.
        size: (height, width) of the image according to the annotations.
    """

    image: str
    mask: str | None = None
    allowed: frozenset[int] | None = None
    size: tuple[int, int] | None = None


@dataclass
class Outcome:
    """Result of a job.

    Attributes:
        job: The job.
        findings: Findings about its files.
        digest: Hash of the image file; None if it is missing or empty.
        labels: Labels that occur in the mask.
        values: Values of the image; None if it is unreadable.
    """

    job: Job
    findings: list[FileFinding] = field(default_factory=list)
    digest: bytes | None = None
    labels: tuple[int, ...] = ()
    values: ValueRange | None = None

    def add(self, kind: str, path: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(FileFinding(kind, path, detail))


def inspect_files(job: Job) -> Outcome:
    """Check the files of a job."""
    outcome = Outcome(job)
    size = None
    if data := _read(job.image, 'image', outcome):
        outcome.digest = hashlib.blake2b(data, digest_size=16).digest()
        size = check_image(readable(job.image), data, outcome)
    if size and job.size and size != job.size:
        detail = f'the file is {_by(size)}, the annotation says {_by(job.size)}'
        outcome.add('size differs from the annotation', readable(job.image), detail)
    if job.mask and (data := _read(job.mask, 'mask', outcome, f'of {job.image}')):
        outcome.labels = check_mask(job.mask, data, size, job.allowed, outcome)
    return outcome


def _read(path: str, what: str, outcome: Outcome, detail: str = '') -> bytes | None:
    """Read a file; on failure add a finding and return None."""
    name = readable(path)
    try:
        if is_tar_path(path):
            data = read_tar_path(path)
        else:
            with open(path, 'rb') as file:
                data = file.read()
    except FileNotFoundError:
        outcome.add(f'missing {what}', name, detail or 'there is no such file')
    except (OSError, ValueError) as error:  # a truncated archive raises a ValueError
        outcome.add('unreadable', name, getattr(error, 'strerror', None) or str(error))
    else:
        if data:
            return data
        outcome.add('empty file', name, '0 bytes')
    return None


def check_image(path: str, data: bytes, outcome: Outcome) -> tuple[int, int] | None:
    """Check an image and add to the findings; return its (height, width) in training, None if it is unreadable."""
    image = _decode_with_pillow(path, data, outcome)
    if image is None:
        return None
    width, height, mode, turned = image
    with _stderr() as printed:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        stored = stored_values(data)
        what = 'it' if stored is None else f'{stored.dtype.name} values as an image: convert the file to 8 bits'
        outcome.add('unreadable', path, f'OpenCV cannot decode {what}')
        return None
    if data[:2] == START and data[-2:] != END and not is_whole(data):  # decoders accept a rest of zeros
        outcome.add('truncated', path, 'a JPEG file without its end')
    for line in {line for line in printed if 'Corrupt JPEG data' in line}:
        harmless = 'extraneous bytes' in line
        outcome.add(JPEG_WARNING if harmless else 'corrupt', path, line)
    if mode in ('CMYK', 'YCCK'):
        outcome.add(CMYK, path, 'converted to RGB on reading')
    outcome.values = value_range(data, decoded)
    if outcome.values.deep:
        outcome.add(NARROW_RANGE if outcome.values.narrow else SIXTEEN_BIT, path, str(outcome.values))
    if turned in TURNED:
        outcome.add(EXIF_TURNED, path, f'orientation {turned}, stored as {_by((height, width))}')
    if min(width, height) < TINY:
        outcome.add(SMALL, path, f'{_by((height, width))} pixels')
    if width * height > HUGE:
        outcome.add(LARGE, path, f'{_by((height, width))} pixels')
    return decoded.shape[0], decoded.shape[1]


def _decode_with_pillow(path: str, data: bytes, outcome: Outcome) -> tuple[int, int, str, int] | None:
    """Decode an image to its end with Pillow: width, height, mode, EXIF orientation. On failure add a finding."""
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as image:
            width, height, mode = *image.size, image.mode
            if width * height > READABLE:
                outcome.add('too large', path, f'{_by((height, width))} pixels, OpenCV reads at most 2**30')
                return None
            image.draft(mode, (1, 1))  # decodes a JPEG at an eighth of its size, three times faster, to its end
            image.load()
            return width, height, mode, image.getexif().get(ORIENTATION, 1)
    except UnidentifiedImageError:
        outcome.add('not an image', path, f'starts with {data[:12]!r}')
    except Exception as error:  # a decoder may raise anything
        cut = isinstance(error, OSError) and 'truncated' in str(error).lower()
        outcome.add('truncated' if cut else 'unreadable', path, f'{error}' or type(error).__name__)
    return None


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Make truncated files errors and allow large ones, whatever the program has set."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about unusual metadata
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _stderr() -> Iterator[list[str]]:
    """Yield a list that holds, after the context, what libraries have written to the standard error stream.

    libjpeg reports damaged data only there, and OpenCV returns the image nevertheless.
    """
    lines, before = [], os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += file.read().decode(errors='replace').splitlines()


def check_mask(
    path: str, data: bytes, size: tuple[int, int] | None, allowed: frozenset[int] | None, outcome: Outcome
) -> tuple[int, ...]:
    """Return the label values of a mask; add findings for another size, several channels, or other labels."""
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as image:
            mask = np.asarray(image)
    except Exception as error:  # a decoder may raise anything
        outcome.add('unreadable mask', path, f'{error}' or type(error).__name__)
        return ()
    if mask.ndim != 2:
        detail = f'{mask.shape[-1]} channels: a mask holds one class number per pixel (gray or palette PNG)'
        outcome.add('mask with several channels', path, detail)
        return ()
    if size and mask.shape != size:
        outcome.add('mask of another size', path, f'{_by(mask.shape)}, its image is {_by(size)}')
    values, counts = _count(mask)
    if allowed is not None:
        wrong = {int(value): int(count) for value, count in zip(values, counts) if int(value) not in allowed}
        if wrong:
            shown = ', '.join(f'{value} ({count} pixels)' for value, count in list(wrong.items())[:5])
            outcome.add('label outside the classes', path, shown + (', ...' if len(wrong) > 5 else ''))
    return tuple(int(value) for value in values)


def _count(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that occur and their counts."""
    if mask.dtype != np.uint8:
        return np.unique(mask, return_counts=True)
    counts = np.bincount(mask.ravel(), minlength=256)  # faster than numpy.unique, which sorts
    return np.flatnonzero(counts), counts[counts > 0]


def _by(size: Sequence[int]) -> str:
    """Format a size (height, width) as width x height."""
    return f'{size[1]} x {size[0]}'


# --- COCO ---


def check_coco(content: dict, file: str, classes: Sequence[str], with_masks: bool) -> list[FileFinding]:
    """Check a COCO annotation file without its images.

    Args:
        content: Content of the file.
        file: Path of the file.
        classes: Classes of the data set. Those without instances are noted.
        with_masks: Whether each annotation needs a mask.
    """
    findings, used = [], Counter()
    names = {category['id']: category['name'] for category in content['categories']}
    images = {image['id']: image for image in content['images']}
    for what, entries in (('image', content['images']), ('annotation', content['annotations'])):
        for number, count in Counter(entry['id'] for entry in entries).items():
            if count > 1:
                findings.append(FileFinding('id not unique', file, f'{what} {number} occurs {count} times'))
    for annotation in content['annotations']:
        where = f'annotation {annotation["id"]}'
        used[names.get(annotation['category_id'])] += 1
        if annotation['category_id'] not in names:
            findings.append(FileFinding('unknown category', file, f'{where}: category {annotation["category_id"]}'))
        image = images.get(annotation['image_id'])
        if image is None:
            findings.append(FileFinding('annotation without image', file, f'{where}: image {annotation["image_id"]}'))
            continue
        where += f' of {image["file_name"]}'
        size = image['height'], image['width']
        for kind, detail in (
            _fault_of_box(annotation.get('bbox'), size),
            _fault_of_mask(annotation.get('segmentation'), size, with_masks),
        ):
            if kind:
                findings.append(FileFinding(kind, file, f'{where}: {detail}'))
    unknown = [name for name in classes if name not in names.values()]
    findings += [FileFinding('class unknown to the annotation file', file, name) for name in unknown]
    findings += [FileFinding(CLASS_ABSENT, file, name) for name in classes if name not in unknown and not used[name]]
    return findings


def _fault_of_box(box: Sequence[float] | None, size: tuple[int, int]) -> tuple[str, str]:
    """Check a box (x, y, width, height); return kind and detail of a fault, or two empty strings."""
    if box is None or len(box) != 4 or not all(math.isfinite(number) for number in box):
        return 'box invalid', f'{box}'
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return 'box empty', f'{width} x {height} pixels'
    if min(x, y) < -TOLERANCE or x + width > size[1] + TOLERANCE or y + height > size[0] + TOLERANCE:
        return 'box outside its image', f'x {x:g} to {x + width:g}, y {y:g} to {y + height:g} of {_by(size)}'
    return '', ''


def _fault_of_mask(mask, size: tuple[int, int], needed: bool) -> tuple[str, str]:
    """Check a mask, polygons or a run-length code, like :func:`_fault_of_box`."""
    if not mask:
        return ('annotation without mask', 'no segmentation') if needed else ('', '')
    if isinstance(mask, dict):
        if tuple(mask.get('size', ())) != size:
            return 'mask invalid', f'run lengths of size {mask.get("size")}, the image is {list(size)} (height, width)'
        return _fault_of_runs(mask['counts'], size)
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2 or not all(math.isfinite(number) for number in polygon):
            return 'mask invalid', f'polygon of {len(polygon)} numbers: at least 6, an even number, and finite'
        x, y = polygon[::2], polygon[1::2]
        if min(*x, *y) < -TOLERANCE or max(x) > size[1] + TOLERANCE or max(y) > size[0] + TOLERANCE:
            return 'mask outside its image', (f'x {min(x):g} to {max(x):g}, y {min(y):g} to {max(y):g} of {_by(size)}')
    return '', ''


def _fault_of_runs(counts, size: tuple[int, int]) -> tuple[str, str]:
    pixels, runs = size[0] * size[1], counts
    if isinstance(counts, (str, bytes)):
        runs = _decode_runs(counts if isinstance(counts, bytes) else counts.encode())
    if any(run < 0 for run in runs) or sum(runs) != pixels:
        return 'mask invalid', f'run lengths add up to {sum(runs)} of {pixels} pixels'
    if not sum(runs[1::2]):
        return 'mask empty', 'no pixel is set'
    return '', ''


def _decode_runs(code: bytes) -> list[int]:
    """Decode the compressed run lengths of COCO; pycocotools crashes on invalid ones.

    Each character holds 5 bits of a number. From the fourth on, numbers are relative to the last but one.
    """
    runs, value, shift = [], 0, 0
    for character in code:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
