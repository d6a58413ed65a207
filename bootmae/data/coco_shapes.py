"""Boxes and masks of COCO annotations: what is wrong with one, and its area."""

import math
from collections.abc import Sequence

from pycocotools import mask as coco_mask

TOLERANCE = 1.0  # pixels by which boxes and polygons may exceed their image, since published sets round
Size = tuple[int, int]  # (height, width)


def by(size: Sequence[int]) -> str:
    """Format a size (height, width) as width x height."""
    return f'{size[1]} x {size[0]}'


def fault_of_box(box: Sequence[float], size: Size) -> tuple[str, str]:
    """Check a box (x, y, width, height); return kind and detail of a fault, or two empty strings."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return 'box empty', f'{width} x {height} pixels'
    if min(x, y) < -TOLERANCE or x + width > size[1] + TOLERANCE or y + height > size[0] + TOLERANCE:
        return 'box outside its image', f'x {x:g} to {x + width:g}, y {y:g} to {y + height:g} of {by(size)}'
    return '', ''


def fault_of_mask(mask, size: Size, needed: bool) -> tuple[str, str]:
    """Check a mask, polygons or a run-length code, like :func:`fault_of_box`."""
    if not mask:
        return ('annotation without mask', 'no segmentation') if needed else ('', '')
    if isinstance(mask, dict):
        if list(mask.get('size') or ()) != list(size):
            return 'mask invalid', f'run lengths of size {mask.get("size")}, the image is {list(size)} (height, width)'
        return _fault_of_runs(mask.get('counts'), size)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return 'mask invalid', f'{str(mask)[:40]}: give a list of polygons [x1, y1, x2, y2, ...], or run lengths'
    for polygon in mask:
        if len(polygon) < 6 or len(polygon) % 2 or not all(_is_finite(number) for number in polygon):
            return 'mask invalid', f'polygon of {len(polygon)} numbers: at least 6, an even number, and finite'
        x, y = polygon[::2], polygon[1::2]
        if min(*x, *y) < -TOLERANCE or max(x) > size[1] + TOLERANCE or max(y) > size[0] + TOLERANCE:
            return 'mask outside its image', (f'x {min(x):g} to {max(x):g}, y {min(y):g} to {max(y):g} of {by(size)}')
    return '', ''


def _is_finite(number) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _fault_of_runs(counts, size: Size) -> tuple[str, str]:
    pixels, runs = size[0] * size[1], counts
    if isinstance(counts, (str, bytes)):
        runs = decode_runs(counts if isinstance(counts, bytes) else counts.encode())
    if not isinstance(runs, list) or not all(isinstance(run, int) for run in runs):
        return 'mask invalid', f'counts {str(counts)[:40]}: give run lengths, whole numbers or their compressed text'
    if any(run < 0 for run in runs) or sum(runs) != pixels:
        return 'mask invalid', f'run lengths add up to {sum(runs)} of {pixels} pixels'
    if not sum(runs[1::2]):
        return 'mask empty', 'no pixel is set'
    return '', ''


def decode_runs(code: bytes) -> list[int]:
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


def area_of(box: Sequence[float], mask, size: Size) -> float:
    """Return the area in pixels of a valid mask, or else of the box."""
    if not mask or fault_of_mask(mask, size, False)[0]:
        return max(box[2], 0) * max(box[3], 0)
    if isinstance(mask, dict):
        counts = mask['counts']
        return float(sum(counts[1::2]) if isinstance(counts, list) else coco_mask.area(mask))
    return float(sum(map(_area_of_polygon, mask)))


def _area_of_polygon(polygon: Sequence[float]) -> float:
    """Return the area that x1, y1, x2, y2, ... enclose."""
    x, y = polygon[::2], polygon[1::2]
    return abs(sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))) / 2
