"""Pictures with captions: attention maps and components as colors."""

import io

import numpy as np
import pytest
from PIL import Image

from bootmae.visualization.grids import GUTTER, HEADING
from bootmae.visualization.panels import (
    CAPTION_WIDTH,
    DIMMED,
    attention_overlay,
    captioned_grid,
    component_colors,
    fit_width,
    wrap,
)
from bootmae.visualization.predictions import KEY_PAPER


def test_grid_with_caption():
    columns = {name: np.full((2, 8, 12, 3), value, dtype=np.uint8) for name, value in (('a', 10), ('b', 200))}
    picture = Image.open(io.BytesIO(captioned_grid(columns, 'one two three', tile=36)))
    pixels = np.asarray(picture)
    assert pixels.shape[1] == CAPTION_WIDTH
    assert (pixels[HEADING : HEADING + 24, :36, :3] == 10).all()
    assert (pixels[HEADING + 24 + GUTTER, 36 + GUTTER : 72 + GUTTER, :3] == 200).all()
    below = HEADING + 2 * 24 + 2 * GUTTER
    assert tuple(pixels[below, -1, :3]) == KEY_PAPER
    assert pixels[below:, :, :3].max() > 200, 'the caption is written'
    longer = Image.open(io.BytesIO(captioned_grid(columns, 'one two three ' * 30, tile=36)))
    assert longer.height > picture.height


def test_wrap():
    assert wrap('aa bb cc dddddd e', lambda line: len(line) <= 5) == ['aa bb', 'cc', 'dddddd', 'e']


def test_width():
    pictures = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    assert np.array_equal(fit_width(pictures, 7), pictures.repeat(2, axis=1).repeat(2, axis=2))
    wide = np.zeros((1, 4, 8, 3), dtype=np.uint8)
    wide[:, :, 4:] = 100
    assert fit_width(wide, 4)[0, 0, :, 0].tolist() == [0, 0, 100, 100]


def test_attention_is_relative_to_its_largest():
    images = np.full((2, 4, 6, 3), 100, dtype=np.uint8)
    maps = np.zeros((2, 2, 3))
    maps[0, 1, 2], maps[1, 1, 2] = 0.5, 0.01
    shown = attention_overlay(images, maps)
    assert np.array_equal(shown[0], shown[1])
    assert (shown[:, :2] == round(DIMMED * 100)).all(), 'no attention: the gray image alone'
    assert (shown[0, 2:, 4:] == shown[0, 2, 4]).all()
    assert shown[0, 2, 4].min() > 100, 'the brightest color'
    assert (attention_overlay(images, np.zeros((2, 2, 3))) == 75).all()


def test_component_colors():
    components = np.zeros((1, 2, 2, 3))
    components[0, ..., 0], components[0, ..., 1] = [[0, 1], [2, 4]], [[5, 5], [-5, -5]]
    shown = component_colors(components, (4, 4), tails=0)
    assert shown[0, ::2, ::2, 0].tolist() == [[0, 64], [128, 255]]
    assert shown[0, ::2, ::2, 1].tolist() == [[255, 255], [0, 0]]
    assert not shown[..., 2].any()
    assert (shown[0, 2:, 2:, 0] == 255).all()


@pytest.mark.parametrize('tails, clipped', [(0, 1), (10, 11)])
def test_tails_are_cut(tails, clipped):
    components = np.arange(101.0).reshape(1, 1, 101, 1).repeat(3, axis=-1)
    shown = component_colors(components, (1, 101), tails)
    assert (shown[..., 0] == 255).sum() == clipped
