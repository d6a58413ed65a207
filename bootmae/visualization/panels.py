"""Pictures of one checkpoint, each with a caption drawn below it: attention over images, components as colors.

Shape letters: n images, H and W their size, h and w rows and columns of patches.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from .grids import GUTTER, compose_grid, font_of, png
from .predictions import KEY_INK, KEY_PAPER, gray

TILE = 144  # pixels that a picture is wide, about
HEAT = 'inferno'
DIMMED, OPACITY = 0.75, 0.8  # of the gray image, and of the strongest attention over it
CAPTION_SIZE, CAPTION_LINE, CAPTION_PAD, CAPTION_WIDTH = 14, 20, 10, 420


def captioned_grid(columns: Mapping[str, np.ndarray], caption: str, tile: int = TILE) -> bytes:
    """PNG with one image a row, one panel a column with its heading, and a caption below.

    Args:
        columns: By heading, uint8 (n, H, W, 3), of one shape, in this order.
        caption: Plain text; wrapped to the width of the grid.
        tile: Pixels that a picture is wide, about; pixels are repeated, or larger pictures averaged.
    """
    panels = [fit_width(np.asarray(array), tile) for array in columns.values()]
    return png(with_caption(compose_grid(list(columns), panels), caption))


def fit_width(pictures: np.ndarray, width: int) -> np.ndarray:
    """Pictures (n, H, W, 3) enlarged by a whole factor, or averaged, to about ``width`` pixels."""
    tall, broad = pictures.shape[1:3]
    if broad <= width:
        scale = max(1, round(width / broad))
        return pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    size = width, max(1, round(tall * width / broad))
    return np.stack([np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) for picture in pictures])


def with_caption(picture: Image.Image, caption: str) -> Image.Image:
    """The picture above a strip with a caption, the strip at least as wide as a readable line."""
    font, width = font_of(CAPTION_SIZE), max(picture.width, CAPTION_WIDTH)
    lines = wrap(caption, lambda text: font.getlength(text) <= width - 2 * CAPTION_PAD)
    top = picture.height + GUTTER
    whole = Image.new('RGBA', (width, top + 2 * CAPTION_PAD + CAPTION_LINE * len(lines)))
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    draw.rectangle((0, top, *whole.size), fill=KEY_PAPER)
    for row, line in enumerate(lines):
        place = CAPTION_PAD, top + CAPTION_PAD + (row + 0.5) * CAPTION_LINE
        draw.text(place, line, fill=KEY_INK, font=font, anchor='lm')
    return whole


def wrap(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Lines of whole words, each the longest that ``fits(line)``; a longer word has a line of its own."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and not fits(longer):
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def attention_overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Attention over gray images, each map relative to its own largest value; patches stay squares.

    Args:
        images: uint8 (n, H, W, 3).
        maps: (n, h, w), not negative; H and W are multiples of h and w.

    Returns:
        uint8 (n, H, W, 3).
    """
    largest = maps.max(axis=(1, 2), keepdims=True)
    heat = spread(maps / np.where(largest > 0, largest, 1), images.shape[1:3])
    color = 255 * colormaps[HEAT](heat)[..., :3]
    weight = OPACITY * heat[..., None]
    return ((1 - weight) * DIMMED * gray(images) + weight * color).round().astype(np.uint8)


def component_colors(components: np.ndarray, size: Sequence[int], tails: float = 1.0) -> np.ndarray:
    """Three components as red, green and blue, each from its 1st to its 99th percentile over all images.

    Args:
        components: (n, h, w, 3).
        size: height and width of the pictures.
        tails: Percent that is cut off on either side.

    Returns:
        uint8 (n, height, width, 3).
    """
    low, high = np.percentile(components, [tails, 100 - tails], axis=(0, 1, 2))
    unit = (components - low) / np.where(high > low, high - low, 1)
    return spread((255 * unit.clip(0, 1)).round().astype(np.uint8), size)


def spread(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Values of patches (n, h, w, ...) for each pixel (n, height, width, ...)."""
    return maps.repeat(size[0] // maps.shape[1], axis=1).repeat(size[1] // maps.shape[2], axis=2)
