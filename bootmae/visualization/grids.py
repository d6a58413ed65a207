"""Grids of pictures as PNG: one picture a row, one panel a column, headings on top."""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..results.names import method_name

PANEL_ORDER = ('original', 'masked', 'mae', 'bootmae')
GUTTER, HEADING = 4, 22
HEADING_COLOR = (118, 118, 118, 255)


def reconstruction_grid(panels: Mapping[str, np.ndarray], scale: int | None = None) -> bytes:
    """PNG with one picture a row and one panel a column, headings on top, transparent gutters.

    Args:
        panels: By heading, uint8 (n, H, W, 3); ordered original, masked, MAE, BootMAE, then others.
        scale: Whole factor by which pixels are repeated; the default makes a picture about 128 pixels wide.

    Raises:
        ValueError: No panel, another type, or panels of unequal shape.
    """
    names = sorted(panels, key=_panel_rank)
    arrays = [np.asarray(panels[name]) for name in names]
    _check_panels(names, arrays)
    scale = scale or max(1, round(128 / arrays[0].shape[2]))
    return png(compose_grid([method_name(name) for name in names], [enlarge(array, scale) for array in arrays]))


def enlarge(pictures: np.ndarray, scale: int) -> np.ndarray:
    """Pictures (n, H, W, ...) with every pixel repeated along both sides."""
    return pictures.repeat(scale, axis=1).repeat(scale, axis=2)


def compose_grid(headings: Sequence[str], columns: Sequence[np.ndarray]) -> Image.Image:
    """RGBA picture of one column a heading, each of uint8 tiles (n, H, W, 3) of one shape; transparent gutters."""
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
    """Bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


def tile_origin(row: int, column: int, tile_height: int, tile_width: int) -> tuple[int, int]:
    """Top and left pixel of a picture in the grid."""
    return HEADING + row * (tile_height + GUTTER), column * (tile_width + GUTTER)


def _panel_rank(name: str) -> int:
    return PANEL_ORDER.index(name.lower()) if name.lower() in PANEL_ORDER else len(PANEL_ORDER)


def _check_panels(names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    if not arrays:
        raise ValueError('no panel to draw; give at least the originals')
    for name, array in zip(names, arrays, strict=True):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(f'panel {name!r} is {array.dtype} {array.shape}; give uint8 (n, height, width, 3)')
        if array.shape != arrays[0].shape:
            raise ValueError(
                f'panel {name!r} has the shape {array.shape}, {names[0]!r} has '
                f'{arrays[0].shape}; give the same pictures in every panel'
            )


def _draw_headings(picture: Image.Image, names: Sequence[str], width: int) -> None:
    draw = ImageDraw.Draw(picture)
    largest = 17 if width > 160 else 14  # broad pictures are shown smaller than they are
    for column, name in enumerate(names):
        left = tile_origin(0, column, 0, width)[1]
        size = next((s for s in range(largest, 6, -1) if draw.textlength(name, font_of(s)) <= width), 6)
        draw.text((left + width / 2, HEADING / 2), name, fill=HEADING_COLOR, font=font_of(size), anchor='mm')


@lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size)
