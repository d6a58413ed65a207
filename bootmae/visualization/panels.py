"""Pictures of one checkpoint with a caption: attention maps over images, principal components as colors.

Shape letters: n images, H x W image size, h and w rows and columns of patches.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from .grids import GUTTER, compose_grid, enlarge, font_of, png
from .predictions import KEY_INK, KEY_PAPER, gray

TILE = 144  # approximate width of an image in pixels
HEAT = 'inferno'
DIMMED, OPACITY = 0.75, 0.8  # brightness of the gray image, and opacity of the strongest attention
CAPTION_SIZE, CAPTION_LINE, CAPTION_PAD, CAPTION_WIDTH = 14, 20, 10, 420


def captioned_grid(columns: Mapping[str, np.ndarray], caption: str, tile: int = TILE) -> bytes:
    """Draw a grid with one image per row, one panel per column, and a caption below.

    Args:
        columns: Images by heading, uint8 (n, H, W, 3) of one shape.
        caption: Plain text, which is wrapped to the width of the grid.
        tile: Approximate width of an image in pixels. Smaller images are enlarged by an integer factor, larger ones
            averaged.

    Returns:
        A PNG file.
    """
    panels = [fit_width(np.asarray(array), tile) for array in columns.values()]
    return png(with_caption(compose_grid(list(columns), panels), caption))


def fit_width(pictures: np.ndarray, width: int) -> np.ndarray:
    """Resize images (n, H, W, 3) to about ``width`` pixels, by an integer factor or by averaging."""
    tall, broad = pictures.shape[1:3]
    if broad <= width:
        return enlarge(pictures, max(1, round(width / broad)))
    size = width, max(1, round(tall * width / broad))
    return np.stack([np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) for picture in pictures])


def with_caption(picture: Image.Image, caption: str) -> Image.Image:
    """Add a strip with a caption below a picture, at least as wide as a readable line."""
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
    """Wrap text into the longest lines that satisfy ``fits(line)``; a word that is too long gets its own line."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and not fits(longer):
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def attention_overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Draw attention maps over gray images, each relative to its own maximum, without interpolation.

    Args:
        images: uint8 (n, H, W, 3).
        maps: Nonnegative (n, h, w). H and W must be multiples of h and w.

    Returns:
        uint8 (n, H, W, 3).
    """
    largest = maps.max(axis=(1, 2), keepdims=True)
    heat = fill_patches(maps / np.where(largest > 0, largest, 1), images.shape[1:3])
    color = 255 * colormaps[HEAT](heat)[..., :3]
    weight = OPACITY * heat[..., None]
    return ((1 - weight) * DIMMED * gray(images) + weight * color).round().astype(np.uint8)


def component_colors(components: np.ndarray, size: Sequence[int], tails: float = 1.0) -> np.ndarray:
    """Draw three components as red, green and blue, each scaled between two percentiles over all images.

    Args:
        components: (n, h, w, 3).
        size: Height and width of the pictures.
        tails: The lower percentile; the upper one is 100 minus it.

    Returns:
        uint8 (n, height, width, 3).
    """
    low, high = np.percentile(components, [tails, 100 - tails], axis=(0, 1, 2))
    unit = (components - low) / np.where(high > low, high - low, 1)
    return fill_patches((255 * unit.clip(0, 1)).round().astype(np.uint8), size)


def fill_patches(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Repeat values of patches (n, h, w, ...) for each pixel (n, height, width, ...)."""
    return maps.repeat(size[0] // maps.shape[1], axis=1).repeat(size[1] // maps.shape[2], axis=2)
