"""Checks of single files: images and segmentation masks.

A fault would stop a run or corrupt it. A note is about a file that is read correctly but unusual. Images are decoded as
in training (OpenCV, with the EXIF orientation applied), and with Pillow, which detects truncated files.
"""

import contextlib
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from .channels import ChannelFormat, advice_for
from .coco_shapes import by
from .findings import (
    CMYK,
    EXIF_TURNED,
    HUGE,
    JPEG_WARNING,
    LABEL_OUTSIDE,
    LARGE,
    MASK_CHANNELS,
    MASK_SIZE,
    MISSING_MASK,
    NARROW_RANGE,
    ORIENTED,
    OTHER_SIZE,
    SIXTEEN_BIT,
    SMALL,
    TINY,
    FileFinding,
)
from .jpeg import END, START, is_whole
from .tar import is_tar_path, read_tar_path, readable
from .value_range import ValueRange, channel_range, stored_values, value_range

IGNORED = 255  # label of pixels that are neither learnt nor evaluated
READABLE = 2**30  # pixels, the limit of OpenCV
ORIENTATION = 0x0112  # EXIF tag
TURNED = range(2, 9)  # values of that tag that rotate or mirror an image
TRANSPOSED = 5  # from this value on, width and height change places
TURN_ADVICE = (
    'the image is turned on reading, but its annotation seems to be made on the stored pixels. If so, remove the tag '
    "(exiftool -Orientation= FILE) or set color_type='color_ignore_orientation' in LoadImageFromFile; if not, store "
    'the turned pixels (ImageOps.exif_transpose of Pillow)'
)


@dataclass(frozen=True)
class Job:
    """Files to check together.

    Args:
        image: Path of an image.
        mask: Path of its segmentation mask, if it has one.
        allowed: Label values that may occur in the mask.
        size: (height, width) of the image according to the annotations.
        turned: Whether the image is turned on reading as its EXIF orientation says.
        channels: How the image is read if not as 8-bit color.
    """

    image: str
    mask: str | None = None
    allowed: frozenset[int] | None = None
    size: tuple[int, int] | None = None
    turned: bool = True
    channels: ChannelFormat | None = None

    @property
    def annotated(self) -> bool:
        return self.size is not None or self.mask is not None


@dataclass
class Outcome:
    """Result of a job.

    Attributes:
        job: The job.
        findings: Findings about its files.
        digest: Hash of the image file; None if it is missing or empty.
        labels: Number of pixels of the mask by label.
        values: Values of the image; None if it is unreadable.
    """

    job: Job
    findings: list[FileFinding] = field(default_factory=list)
    digest: bytes | None = None
    labels: dict[int, int] = field(default_factory=dict)
    values: ValueRange | None = None

    def add(self, kind: str, path: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(FileFinding(kind, path, detail))


def inspect_files(job: Job) -> Outcome:
    """Check the files of a job."""
    outcome = Outcome(job)
    image = mask = None
    if data := _read(job.image, 'image', outcome):
        outcome.digest = hashlib.blake2b(data, digest_size=16).digest()
        check = check_image if job.channels is None else check_channels
        image = check(readable(job.image), data, outcome)
    if job.mask and (data := _read(job.mask, 'mask', outcome, missing_mask(job))):
        mask = check_mask(job.mask, data, job.allowed, outcome)
    if image:
        _compare(job, image, mask, outcome)
    return outcome


def inspect_headers(job: Job) -> Outcome:
    """Compare an image with its annotation as :func:`inspect_files` does, but read only the beginning of its files.

    Files that cannot be read have no finding.
    """
    outcome = Outcome(job)
    image = None if is_tar_path(job.image) else _read_header(job.image)
    mask = _read_header(job.mask) if job.mask else None
    if job.mask and not os.path.isfile(job.mask):
        outcome.add(MISSING_MASK, job.mask, missing_mask(job))
    if image:
        _compare(job, image, (mask.height, mask.width) if mask else None, outcome)
    return outcome


def inspect_mask(job: Job) -> Outcome:
    """Check the values of a mask alone, as :func:`inspect_files` does."""
    outcome = Outcome(job)
    if data := _read(job.mask, 'mask', outcome, missing_mask(job)):
        check_mask(job.mask, data, job.allowed, outcome)
    return outcome


def missing_mask(job: Job) -> str:
    """Say of which image a mask is missing, and name a file that differs from it in upper and lower case alone."""
    folder, name = os.path.split(job.mask)
    try:
        alike = [other for other in os.listdir(folder) if other.lower() == name.lower()]
    except OSError:
        alike = []
    advice = f'there is {alike[0]}: rename it, or set seg_map_suffix' if alike else 'every image needs one of its name'
    return f'of {job.image}; {advice}'


class Shape(NamedTuple):
    """What the header of an image says: its size as stored, and its EXIF orientation."""

    height: int
    width: int
    orientation: int


def _read_header(path: str) -> Shape | None:
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter('ignore')  # about unusual metadata
            return Shape(image.height, image.width, image.getexif().get(ORIENTATION, 1))
    except Exception:  # a decoder may raise anything
        return None


def _compare(job: Job, image: Shape, mask: tuple[int, int] | None, outcome: Outcome) -> None:
    """Compare the size and the orientation of an image with its annotation or the size of its mask."""
    path, stored, size = readable(job.image), (image.height, image.width), (image.height, image.width)
    if image.orientation in TURNED and job.turned:
        size = stored[::-1] if image.orientation >= TRANSPOSED else stored
        annotated = job.size or mask
        detail = f'orientation {image.orientation}, stored as {by(stored)}'
        if not job.annotated:
            outcome.add(EXIF_TURNED, path, detail)
        elif annotated and size == annotated != stored:
            outcome.add(EXIF_TURNED, path, f'{detail}; the annotation has the size of the turned image')
        else:
            outcome.add(ORIENTED, path, f'{detail}: {TURN_ADVICE}')
            return
    if job.size and size != job.size:
        outcome.add(OTHER_SIZE, path, f'the file is {by(size)}, the annotation says {by(job.size)}')
    if mask and mask != size:
        outcome.add(MASK_SIZE, job.mask, f'{by(mask)}, its image is {by(size)}')


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


def check_image(path: str, data: bytes, outcome: Outcome) -> Shape | None:
    """Check an image and add to the findings; return its size and orientation, None if it is unreadable."""
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
    _check_size(path, height, width, outcome)
    return Shape(height, width, turned)


def check_channels(path: str, data: bytes, outcome: Outcome) -> Shape | None:
    """Do the work of :func:`check_image` on an image that is read as the job's ``channels`` say."""
    try:
        outcome.values, (height, width) = channel_range(outcome.job.channels, data)
    except ValueError as error:
        outcome.add('unreadable', path, str(error))
        return None
    _check_size(path, height, width, outcome)
    return Shape(height, width, 1)


def _check_size(path: str, height: int, width: int, outcome: Outcome) -> None:
    if min(width, height) < TINY:
        outcome.add(SMALL, path, f'{by((height, width))} pixels')
    if width * height > HUGE:
        outcome.add(LARGE, path, f'{by((height, width))} pixels')


def _decode_with_pillow(path: str, data: bytes, outcome: Outcome) -> tuple[int, int, str, int] | None:
    """Decode an image to its end with Pillow: width, height, mode, EXIF orientation. On failure add a finding."""
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as image:
            width, height, mode = *image.size, image.mode
            if width * height > READABLE:
                outcome.add('too large', path, f'{by((height, width))} pixels, OpenCV reads at most 2**30')
                return None
            image.draft(mode, (1, 1))  # decodes a JPEG at an eighth of its size, three times faster, to its end
            image.load()
            return width, height, mode, image.getexif().get(ORIENTATION, 1)
    except UnidentifiedImageError:
        outcome.add('not an image', path, advice_for(data) or f'starts with {data[:12]!r}')
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


def check_mask(path: str, data: bytes, allowed: frozenset[int] | None, outcome: Outcome) -> tuple[int, int] | None:
    """Count the pixels of each label in a mask and add to the findings; return its size, or None."""
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as image:
            mask = np.asarray(image)
    except Exception as error:  # a decoder may raise anything
        outcome.add('unreadable mask', path, f'{error}' or type(error).__name__)
        return None
    if mask.ndim != 2:
        detail = f'{mask.shape[-1]} channels: a mask needs one class number per pixel (gray or palette PNG)'
        outcome.add(MASK_CHANNELS, path, detail)
        return None
    outcome.labels = {int(value): int(count) for value, count in zip(*_count(mask))}
    wrong = {} if allowed is None else {value: n for value, n in outcome.labels.items() if value not in allowed}
    if wrong:
        shown = ', '.join(f'{value} ({count} pixels)' for value, count in list(wrong.items())[:5])
        more, last = ', ...' if len(wrong) > 5 else '', max(allowed - {IGNORED})
        detail = f'{shown}{more}: the data set has 0..{last}: set its classes, or convert its files'
        outcome.add(LABEL_OUTSIDE, path, detail)
    return mask.shape


def _count(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that occur and their counts."""
    if mask.dtype != np.uint8:
        return np.unique(mask, return_counts=True)
    counts = np.bincount(mask.ravel(), minlength=256)  # faster than numpy.unique, which sorts
    return np.flatnonzero(counts), counts[counts > 0]
