"""What is wrong with image, mask and COCO annotation files: checks of single files, from which a scan is made.

A fault would stop a run or spoil it; a note is an image that is read well but worth knowing of. Images are decoded as
in training (OpenCV, turned as their EXIF data say) and by Pillow as well, which tells truncated files from others.
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

from .jpeg import END, START, is_whole
from .tar import is_tar_path, read_tar_path, readable

TINY = 16  # pixels on the shorter side: less than one patch
HUGE = 100_000_000  # pixels
READABLE = 2**30  # pixels; OpenCV reads no larger image
ORIENTATION = 0x0112  # EXIF tag
TURNED = range(2, 9)  # its values that turn or mirror an image
TOLERANCE = 1.0  # pixels by which boxes and polygons may exceed their image: published sets round

# kinds that are no faults
CMYK, SIXTEEN_BIT, EXIF_TURNED, SMALL, LARGE, JPEG_WARNING = NOTES_OF_IMAGES = (
    'CMYK',
    '16-bit',
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
NOTES = frozenset(NOTES_OF_IMAGES + NOTES_OF_SETS)


@dataclass(frozen=True)
class FileFinding:
    """One thing found: its kind, the file, what exactly, and the split (set by the scan)."""

    kind: str
    path: str
    detail: str = ''
    split: str = ''

    @property
    def fault(self) -> bool:
        return self.kind not in NOTES


@dataclass(frozen=True)
class Job:
    """Files that are looked at together.

    Args:
        image: path of an image.
        mask: path of its segmentation mask, if it has one.
        allowed: label values that may occur in the mask.
        size: (height, width) of the image as annotations say.
    """

    image: str
    mask: str | None = None
    allowed: frozenset[int] | None = None
    size: tuple[int, int] | None = None


@dataclass
class Outcome:
    """What a job found, a hash of the image file's bytes (None if missing or empty), and the labels of its mask."""

    job: Job
    findings: list[FileFinding] = field(default_factory=list)
    digest: bytes | None = None
    labels: tuple[int, ...] = ()


def inspect_files(job: Job) -> Outcome:
    """Look at the files of a job."""
    outcome = Outcome(job)
    size = None
    if data := _read(job.image, 'image', outcome.findings):
        outcome.digest = hashlib.blake2b(data, digest_size=16).digest()
        size = check_image(readable(job.image), data, outcome.findings)
    if size and job.size and size != job.size:
        outcome.findings.append(
            FileFinding(
                'size differs from the annotation',
                readable(job.image),
                f'the file is {_by(size)}, the annotation says {_by(job.size)}',
            )
        )
    if job.mask and (data := _read(job.mask, 'mask', outcome.findings, f'of {job.image}')):
        outcome.labels = check_mask(job.mask, data, size, job.allowed, outcome.findings)
    return outcome


def _read(path: str, what: str, findings: list[FileFinding], detail: str = '') -> bytes | None:
    """Bytes of a file, or None and a finding."""
    name = readable(path)
    try:
        if is_tar_path(path):
            data = read_tar_path(path)
        else:
            with open(path, 'rb') as file:
                data = file.read()
    except FileNotFoundError:
        findings.append(FileFinding(f'missing {what}', name, detail or 'there is no such file'))
    except (OSError, ValueError) as error:  # a ValueError of an archive that is cut off
        findings.append(FileFinding('unreadable', name, getattr(error, 'strerror', None) or str(error)))
    else:
        if data:
            return data
        findings.append(FileFinding('empty file', name, '0 bytes'))
    return None


def check_image(path: str, data: bytes, findings: list[FileFinding]) -> tuple[int, int] | None:
    """(height, width) of an image as training sees it, or None if it cannot be decoded; adds to the findings."""
    image = _decode_with_pillow(path, data, findings)
    if image is None:
        return None
    width, height, mode, turned = image
    with _stderr() as printed:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        findings.append(FileFinding('unreadable', path, 'OpenCV cannot decode it'))
        return None
    if data[:2] == START and data[-2:] != END and not is_whole(data):  # decoded nevertheless: its rest is zeros
        findings.append(FileFinding('truncated', path, 'a JPEG file without its end'))
    for line in {line for line in printed if 'Corrupt JPEG data' in line}:
        harmless = 'extraneous bytes' in line
        findings.append(FileFinding(JPEG_WARNING if harmless else 'corrupt', path, line))
    if mode in ('CMYK', 'YCCK'):
        findings.append(FileFinding(CMYK, path, 'converted to RGB on reading'))
    if mode.startswith(('I', 'F')) or _is_16_bit_png(data):
        findings.append(FileFinding(SIXTEEN_BIT, path, 'reduced to 8 bits on reading'))
    if turned in TURNED:
        findings.append(FileFinding(EXIF_TURNED, path, f'orientation {turned}, stored as {_by((height, width))}'))
    if min(width, height) < TINY:
        findings.append(FileFinding(SMALL, path, f'{_by((height, width))} pixels'))
    if width * height > HUGE:
        findings.append(FileFinding(LARGE, path, f'{_by((height, width))} pixels'))
    return decoded.shape[0], decoded.shape[1]


def _decode_with_pillow(path: str, data: bytes, findings: list[FileFinding]) -> tuple[int, int, str, int] | None:
    """Width, height, mode and EXIF orientation of an image that Pillow decodes to its end; else None and a finding."""
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as image:
            width, height, mode = *image.size, image.mode
            if width * height > READABLE:
                findings.append(
                    FileFinding('too large', path, f'{_by((height, width))} pixels, OpenCV reads at most 2**30')
                )
                return None
            image.draft(mode, (1, 1))  # a JPEG is read to its end, but at an eighth of its size: three times faster
            image.load()
            return width, height, mode, image.getexif().get(ORIENTATION, 1)
    except UnidentifiedImageError:
        findings.append(FileFinding('not an image', path, f'starts with {data[:12]!r}'))
    except Exception as error:  # a decoder may raise anything
        cut = isinstance(error, OSError) and 'truncated' in str(error).lower()
        findings.append(FileFinding('truncated' if cut else 'unreadable', path, f'{error}' or type(error).__name__))
    return None


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Truncated files are errors, and large ones are not, whatever the program has set."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of odd metadata
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _stderr() -> Iterator[list[str]]:
    """Yields a list that holds, at the end, the lines which libraries have written to the standard error stream.

    libjpeg tells of damaged data only there, and OpenCV returns the picture all the same.
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


def _is_16_bit_png(data: bytes) -> bool:
    # Pillow opens color PNGs of 16 bits as if they had 8
    return data.startswith(b'\x89PNG') and data[24:25] == b'\x10'


def check_mask(
    path: str, data: bytes, size: tuple[int, int] | None, allowed: frozenset[int] | None, findings: list[FileFinding]
) -> tuple[int, ...]:
    """Label values of a mask, which must have its image's size, one channel, and no value but the allowed ones."""
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data)) as image:
            mask = np.asarray(image)
    except Exception as error:  # a decoder may raise anything
        findings.append(FileFinding('unreadable mask', path, f'{error}' or type(error).__name__))
        return ()
    if mask.ndim != 2:
        findings.append(
            FileFinding(
                'mask with several channels',
                path,
                f'{mask.shape[-1]} channels: a mask holds one class number a pixel (gray or palette PNG)',
            )
        )
        return ()
    if size and mask.shape != size:
        findings.append(FileFinding('mask of another size', path, f'{_by(mask.shape)}, its image is {_by(size)}'))
    values, counts = _count(mask)
    if allowed is not None:
        wrong = {int(value): int(count) for value, count in zip(values, counts) if int(value) not in allowed}
        if wrong:
            shown = ', '.join(f'{value} ({count} pixels)' for value, count in list(wrong.items())[:5])
            findings.append(FileFinding('label outside the classes', path, shown + (', ...' if len(wrong) > 5 else '')))
    return tuple(int(value) for value in values)


def _count(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that occur, and how often."""
    if mask.dtype != np.uint8:
        return np.unique(mask, return_counts=True)
    counts = np.bincount(mask.ravel(), minlength=256)  # numpy.unique sorts, which takes longer than decoding
    return np.flatnonzero(counts), counts[counts > 0]


def _by(size: Sequence[int]) -> str:
    """A size, (height, width), as people write it: width x height."""
    return f'{size[1]} x {size[0]}'


# --- COCO ---


def check_coco(content: dict, file: str, classes: Sequence[str], with_masks: bool) -> list[FileFinding]:
    """What is wrong with the annotations of COCO's format, images aside.

    Args:
        content: of the annotation file.
        file: its path.
        classes: of the data set; those that have no instance are noted.
        with_masks: whether each annotation needs a mask.
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
    """Kind and detail of what is wrong with a box (x, y, width, height); two empty strings if nothing is."""
    if box is None or len(box) != 4 or not all(math.isfinite(number) for number in box):
        return 'box invalid', f'{box}'
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return 'box empty', f'{width} x {height} pixels'
    if min(x, y) < -TOLERANCE or x + width > size[1] + TOLERANCE or y + height > size[0] + TOLERANCE:
        return 'box outside its image', f'x {x:g} to {x + width:g}, y {y:g} to {y + height:g} of {_by(size)}'
    return '', ''


def _fault_of_mask(mask, size: tuple[int, int], needed: bool) -> tuple[str, str]:
    """As :func:`_fault_of_box`, of a mask: polygons, or a run-length code."""
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
    """Run lengths of COCO's compressed code: numbers of 5 bits a character, from the third on relative to the last
    but one. Decoded here, since pycocotools crashes on wrong ones."""
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
