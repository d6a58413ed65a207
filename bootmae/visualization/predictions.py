"""Pictures of predictions next to the ground truth: label maps of segmentation, boxes and masks of detection.

Predictions are drawn over gray images, so that every color stands for a class.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.utils import draw_bounding_boxes

from ..results.names import method_name
from ..text import count_of
from .grids import GUTTER, HEADING_COLOR, compose_grid, enlarge, font_of, ordered, png

IGNORED = 255  # label of unannotated pixels
OPACITY = 0.6  # opacity of a class color over the gray image
DIMMED = 0.6  # brightness outside all instances, so that the instances stand out
TILE = 200  # approximate width of an enlarged image in pixels
LINE = 2  # line width of a box in pixels of the enlarged image
NAME_FONT, NAME_SIZE = Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'), 12  # names in boxes
LUMINANCE = (0.299, 0.587, 0.114)  # weights of red, green and blue
KEY_SIZE, KEY_LINE, KEY_PAD, SWATCH = 15, 24, 8, 14  # font size, line height, margin and swatch of the key
KEY_PAPER, KEY_INK = (38, 40, 44), (232, 232, 234)  # readable on light and dark pages
MIN_SCORE = 0.3
Color = tuple[int, ...]


def segmentation_grid(
    images: np.ndarray,
    panels: Mapping[str, np.ndarray],
    palette: Sequence[Sequence[int]],
    classes: Sequence[str] | None = None,
    scale: int | None = None,
) -> bytes:
    """Draw a grid with one image per row; the columns are the image and one label map per panel.

    Args:
        images: uint8 (n, H, W, 3).
        panels: Integer label maps (n, H, W) by heading, 255 for unannotated pixels.
        palette: Color of each class, 0 to 255 (classes, 3).
        classes: Names of the classes. A key below the grid lists those that occur.
        scale: Integer factor of enlargement; by default images become about 200 pixels wide.

    Returns:
        A PNG file.

    Raises:
        ValueError: If an array has another type or shape, or a label has no color.
    """
    images, scale, names = _prepare(images, panels, scale)
    colors = _colors(palette, classes)
    columns, shown = [enlarge(images, scale)], set()
    for name in names:
        labels = np.asarray(panels[name])
        _check_labels(name, labels, images.shape[:3], len(colors))
        columns.append(enlarge(overlay(images, labels, colors), scale))
        shown.update(np.unique(labels).tolist())
    picture = compose_grid(_headings(names), columns)
    if classes is None:
        return png(picture)
    entries = [(classes[label], tuple(colors[label].tolist())) for label in sorted(shown - {IGNORED})]
    return png(_with_key(picture, entries + [('not annotated', None)] * (IGNORED in shown)))


def detection_grid(
    images: np.ndarray,
    panels: Mapping[str, Sequence[Mapping[str, Any]]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    scale: int | None = None,
    min_score: float = MIN_SCORE,
) -> bytes:
    """Draw a grid with one image per row; the columns are the image and one set of instances per panel.

    Args:
        images: uint8 (n, H, W, 3).
        panels: Instances of each image by heading: ``boxes`` (k, 4) as x1, y1, x2, y2 in pixels, ``labels`` (k,),
            ``masks`` bool (k, H, W) or None, ``scores`` (k,) or None.
        classes: Names of the classes. A key below the grid lists those that occur.
        palette: Color of each class, 0 to 255 (classes, 3).
        scale: Integer factor of enlargement; by default images become about 200 pixels wide.
        min_score: Smallest score of an instance that is drawn; the key states it.

    Returns:
        A PNG file.

    Raises:
        ValueError: If an array has another type or shape, or a label has no color.
    """
    images, scale, names = _prepare(images, panels, scale)
    colors = _colors(palette, classes)
    columns, shown, scored = [enlarge(images, scale)], set(), False
    for name in names:
        if len(panels[name]) != len(images):
            raise ValueError(
                f'panel {name!r} has instances of {count_of(len(panels[name]), "image")}; '
                f'give one entry for each of the {count_of(len(images), "image")}'
            )
        tiles = []
        for image, found in zip(images, panels[name], strict=True):
            scored |= found.get('scores') is not None
            boxes, labels, masks = _instances(name, found, image.shape[:2], len(colors), min_score)
            tiles.append(draw_instances(image, boxes, labels, masks, classes, colors, scale))
            shown.update(labels.tolist())
        columns.append(np.stack(tiles))
    entries = [(classes[label], tuple(colors[label].tolist())) for label in sorted(shown)]
    note = f'predictions with a score of at least {min_score:g}' if scored else ''
    return png(_with_key(compose_grid(_headings(names), columns), entries, note))


def gray(images: np.ndarray) -> np.ndarray:
    """Return the luminance of uint8 (..., 3) in three equal channels, float32."""
    luminance = images.astype(np.float32) @ np.array(LUMINANCE, dtype=np.float32)
    return np.repeat(luminance[..., None], 3, axis=-1)


def overlay(images: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Draw class colors (classes, 3) over gray images (n, H, W, 3); unannotated pixels stay gray."""
    base = gray(images)
    known = labels != IGNORED
    tint = colors[np.where(known, labels, 0)]
    return np.where(known[..., None], _mix(base, tint), base).round().astype(np.uint8)


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    classes: Sequence[str],
    colors: np.ndarray,
    scale: int,
) -> np.ndarray:
    """Draw instances over the enlarged, dimmed gray image (H, W, 3), later ones on top.

    Returns:
        uint8 (H * scale, W * scale, 3).
    """
    base = gray(image)
    tile = DIMMED * base
    # draw_segmentation_masks of torchvision would paint the overlap of two instances black.
    for mask, label in zip(masks if masks is not None else (), labels, strict=False):
        tile[mask] = _mix(base[mask], colors[label])
    tile = enlarge(tile[None].round().astype(np.uint8), scale)[0]
    if not len(boxes):
        return tile
    corners = np.rint(boxes * scale) - (0, 0, 1, 1)  # first and last pixels
    corners = corners.clip(0, np.tile(tile.shape[1::-1], 2) - 1)
    corners[:, 2:] = np.maximum(corners[:, :2], corners[:, 2:])
    shades = [tuple(colors[label].tolist()) for label in labels]
    drawn = draw_bounding_boxes(
        torch.from_numpy(tile).permute(2, 0, 1),
        torch.from_numpy(corners),
        [classes[label] for label in labels],
        shades,
        width=LINE,
        font=str(NAME_FONT),
        font_size=NAME_SIZE,
        label_colors=['black' if np.dot(shade, LUMINANCE) > 140 else 'white' for shade in shades],
        fill_labels=True,
    )
    return drawn.permute(1, 2, 0).numpy()


def _mix(base: np.ndarray, tint: np.ndarray) -> np.ndarray:
    return (1 - OPACITY) * base + OPACITY * tint


def _with_key(picture: Image.Image, entries: Iterable[tuple[str, Color | None]], note: str = '') -> Image.Image:
    """Add a strip below a picture with a key of colors (None for the gray image) and a note, wrapped to its width."""
    font, placed = font_of(KEY_SIZE), []
    x, y = KEY_PAD, KEY_PAD // 2
    for name, color, indent in [*((*entry, SWATCH + 6) for entry in entries), *([(note, None, 0)] if note else [])]:
        width = indent + int(font.getlength(name))
        if x > KEY_PAD and x + width > picture.width - KEY_PAD:
            x, y = KEY_PAD, y + KEY_LINE
        placed.append((x, y + picture.height + GUTTER, indent, name, color))
        x += width + 20
    if not placed:
        return picture
    whole = Image.new('RGBA', (picture.width, placed[-1][1] + KEY_LINE + KEY_PAD // 2))
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    draw.rectangle((0, picture.height + GUTTER, *whole.size), fill=KEY_PAPER)
    for left, top, indent, name, color in placed:
        if indent:
            _draw_swatch(draw, left, top + (KEY_LINE - SWATCH) // 2, color)
        draw.text((left + indent, top + KEY_LINE / 2), name, fill=KEY_INK, font=font, anchor='lm')
    return whole


def _draw_swatch(draw: ImageDraw.ImageDraw, left: int, top: int, color: Color | None) -> None:
    right, bottom = left + SWATCH - 1, top + SWATCH - 1
    draw.rectangle((left, top, right, bottom), fill=color or (200, 200, 200), outline=HEADING_COLOR)
    if color is None:
        draw.line((left, bottom, right, top), fill=HEADING_COLOR)


def _headings(names: Sequence[str]) -> list[str]:
    """Return the headings of all columns, with method names as readers know them."""
    return ['image', *(method_name(name.lower()) if name.lower() in ('mae', 'bootmae') else name for name in names)]


def _prepare(images: np.ndarray, panels: Mapping[str, Any], scale: int | None) -> tuple[np.ndarray, int, list[str]]:
    """Check the images, and return them, the factor of enlargement and the sorted headings."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f'the images are {images.dtype} {images.shape}; give uint8 (n, height, width, 3)')
    if not panels:
        raise ValueError('no panel to draw; give at least the truth')
    return images, scale or max(1, round(TILE / images.shape[2])), ordered(panels)


def _colors(palette: Sequence[Sequence[int]], classes: Sequence[str] | None) -> np.ndarray:
    colors = np.asarray(palette)
    if colors.ndim != 2 or colors.shape[-1] != 3 or colors.min() < 0 or colors.max() > 255:
        raise ValueError(f'the palette has the shape {colors.shape}; give (classes, 3) with values from 0 to 255')
    if classes is not None and len(classes) != len(colors):
        raise ValueError(
            f'{count_of(len(classes), "class name")} and {count_of(len(colors), "color")}; give equally many'
        )
    return colors.astype(int)


def _check_labels(name: str, labels: np.ndarray, shape: tuple[int, ...], classes: int) -> None:
    if labels.shape != shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'panel {name!r} is {labels.dtype} {labels.shape}; give integers {shape} like the images')
    _check_range(name, labels[labels != IGNORED], classes)


def _check_range(name: str, labels: np.ndarray, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(
            f'panel {name!r} holds the label {wrong[0]}, but the palette has {count_of(classes, "color")}; '
            f'labels are 0 to {classes - 1}'
        )


def _instances(
    name: str, found: Mapping[str, Any], shape: tuple[int, int], classes: int, min_score: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return boxes, labels and masks of one image with a score of at least ``min_score``, the best last."""
    boxes = np.asarray(found['boxes'], dtype=float).reshape(-1, 4)
    labels = np.asarray(found['labels'], dtype=int).reshape(-1)
    masks, scores = found.get('masks'), found.get('scores')
    masks = None if masks is None else np.asarray(masks, dtype=bool).reshape(-1, *shape)
    sizes = {len(part) for part in (boxes, labels, masks, scores) if part is not None}
    if len(sizes) != 1:
        raise ValueError(
            f'panel {name!r} has {count_of(len(boxes), "box", "boxes")}, {count_of(len(labels), "label")}, '
            f'{"no masks" if masks is None else count_of(len(masks), "mask")} and '
            f'{"no scores" if scores is None else count_of(len(scores), "score")} for one image; give equally many'
        )
    _check_range(name, labels, classes)
    if scores is None:
        return boxes, labels, masks
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(scores, kind='stable')
    order = order[scores[order] >= min_score]
    return boxes[order], labels[order], None if masks is None else masks[order]
