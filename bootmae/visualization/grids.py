"""Grids of pictures as PNG: one image per row, one panel per column, headings on top."""

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..results.names import method_name

PANEL_ORDER = ('original', 'masked', 'truth', 'untrained', 'mae', 'bootmae')  # others follow
GUTTER, HEADING = 4, 22
HEADING_COLOR = (118, 118, 118, 255)


def reconstruction_grid(panels: Mapping[str, np.ndarray], scale: int | None = None) -> bytes:
    """Draw a grid with one image per row, one panel per column, headings on top, and transparent gutters.

    Args:
        panels: Images by heading, uint8 (n, H, W, 3).
        scale: Integer factor of enlargement; by default images become about 128 pixels wide.

    Returns:
        A PNG file.

    Raises:
        ValueError: If there is no panel, or a panel has another type or shape.
    """
    names = ordered(panels)
    arrays = [np.asarray(panels[name]) for name in names]
    _check_panels(names, arrays)
    scale = scale or max(1, round(128 / arrays[0].shape[2]))
    return png(compose_grid([method_name(name) for name in names], [enlarge(array, scale) for array in arrays]))


def enlarge(pictures: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge images (n, H, W, ...) by an integer factor."""
    return pictures.repeat(scale, axis=1).repeat(scale, axis=2)


def compose_grid(headings: Sequence[str], columns: Sequence[np.ndarray]) -> Image.Image:
    """Compose an RGBA picture from columns of uint8 tiles (n, H, W, 3), one for each heading."""
    n, tall, broad, _ = columns[0].shape
    bottom, right = tile_origin(n, len(columns), tall, broad)
    canvas = np.zeros((bottom - GUTTER, right - GUTTER, 4), dtype=np.uint8)
    for column, tiles in enumerate(columns):
        for row in range(n):
            top, left = tile_origin(row, column, tall, broad)
            canvas[top : top + tall, left : left + broad, :3] = tiles[row]
            canvas[top : top + tall, left : left + broad, 3] = 255
    picture = Image.fromarray(canvas)
    _draw_headings(picture, headings, broad)
    return picture


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


def tile_origin(row: int, column: int, tile_height: int, tile_width: int) -> tuple[int, int]:
    """Return the top and left pixel of a tile in the grid."""
    return HEADING + row * (tile_height + GUTTER), column * (tile_width + GUTTER)


def ordered(names: Iterable[str]) -> list[str]:
    """Sort the headings of panels by ``PANEL_ORDER``."""
    ranks = {name: rank for rank, name in enumerate(PANEL_ORDER)}
    return sorted(names, key=lambda name: ranks.get(name.lower(), len(ranks)))


def _check_panels(names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    if not arrays:
        raise ValueError('no panel to draw; give at least the originals')
    for name, array in zip(names, arrays, strict=True):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(f'panel {name!r} is {array.dtype} {array.shape}; give uint8 (n, height, width, 3)')
        if array.shape != arrays[0].shape:
            raise ValueError(
                f'panel {name!r} has the shape {array.shape}, {names[0]!r} has '
                f'{arrays[0].shape}; give the same images in every panel'
            )


def _draw_headings(picture: Image.Image, names: Sequence[str], width: int) -> None:
    draw = ImageDraw.Draw(picture)
    largest = 17 if width > 160 else 14  # pages scale wide pictures down
    for column, name in enumerate(names):
        left = tile_origin(0, column, 0, width)[1]
        size = next((s for s in range(largest, 6, -1) if draw.textlength(name, font_of(s)) <= width), 6)
        draw.text((left + width / 2, HEADING / 2), name, fill=HEADING_COLOR, font=font_of(size), anchor='mm')


@lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow."""
    return ImageFont.load_default(size)
