"""Preprocessing of images: the evaluation pipelines of the configs, and what Pillow opens."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmcv.transforms import CenterCrop
from mmpretrain.datasets.transforms import ResizeEdge
from PIL import Image
from torch.testing import assert_close

from bootmae import Preprocessing
from bootmae.api.preprocessing import as_array

HALF = dict(mean=(127.5,) * 3, std=(127.5,) * 3)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('shape', [(72, 50), (50, 72), (77, 77), (20, 333), (33, 32)])
def test_crops_are_those_of_the_evaluation_pipelines(shape):
    image = noise(*shape)
    results = ResizeEdge(36, 'short', 'pillow', 'bicubic').transform(dict(img=image))
    expected = CenterCrop(32).transform(results)['img']
    preprocessing = Preprocessing((32, 32), **HALF, resize=(36, 36))
    assert np.array_equal(preprocessing.crop(image), expected)
    assert_close(preprocessing(image), torch.from_numpy(expected.copy()).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize('shape', [(90, 61), (61, 90), (16, 300), (300, 16)])
def test_sizes_that_are_not_square_are_covered(shape):
    """A horizontal ramp keeps its center in the middle, and nothing is padded."""
    ramp = np.broadcast_to(np.linspace(50, 200, shape[1])[None, :, None], (*shape, 3)).astype(np.uint8)
    crop = Preprocessing((32, 64), **HALF, resize=(36, 72)).crop(ramp)
    assert crop.shape == (32, 64, 3)
    assert crop.min() >= 49
    assert crop.mean() == pytest.approx(124.5, abs=1.5)


def test_an_image_of_the_right_size_stays():
    image = noise(32, 64)
    assert Preprocessing((32, 64), **HALF, resize=(36, 72)).crop(image) is image


def test_sizes_and_methods_that_are_none():
    whole = Preprocessing([32, np.int64(64)], **HALF, resize=36)
    assert (whole.size, whole.resize) == ((32, 64), (36, 36))
    for wrong in (0, -8, 8.0, '64', (64,), (64, 64, 3), (64, 0), None):
        for name in ('size', 'resize'):
            with pytest.raises(ValueError, match=f'^{name}={re.escape(repr(wrong))}: give a positive number of pixels'):
                replace(whole, **{name: wrong})
    with pytest.raises(ValueError, match='interpolation=.cubic.: give one of nearest, box, bilinear'):
        replace(whole, interpolation='cubic')
    for wrong in ((0.229, 0.224, 0.225), (58.0,), (58.0, 0.0, 57.0)):
        with pytest.raises(
            ValueError, match=re.escape(f'std={wrong}: give a number for each channel, of values from 0')
        ):
            replace(whole, std=wrong)


def test_mean_and_deviation_are_of_the_channels():
    preprocessing = Preprocessing((8, 8), mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 5.0), resize=(8, 8))
    pixel = np.full((8, 8, 3), (11, 22, 33), np.uint8)
    assert preprocessing(pixel)[:, 3, 5].tolist() == [5.0, 5.0, 6.0]


def test_pillow_images(tmp_path):
    gray = Image.fromarray(noise(8, 6)[..., 0])
    assert np.array_equal(as_array(gray), np.repeat(np.asarray(gray)[..., None], 3, axis=2))
    color = Image.fromarray(noise(8, 6))
    with_alpha = color.copy()
    with_alpha.putalpha(gray)
    assert np.array_equal(as_array(with_alpha), np.asarray(color))
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise
    color.save(tmp_path / 'turned.png', exif=exif)
    upright = np.rot90(np.asarray(color), -1)
    assert np.array_equal(as_array(Image.open(tmp_path / 'turned.png')), upright)
    assert np.array_equal(as_array(tmp_path / 'turned.png'), upright)


def test_a_broken_file_of_pillow(tmp_path):
    """Pillow reads it only when it is used."""
    Image.fromarray(noise(64, 64)).save(tmp_path / 'whole.jpg')
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'whole.jpg').read_bytes()[:1500])
    with (
        Image.open(tmp_path / 'cut.jpg') as image,
        pytest.raises(ValueError, match=r'cut.jpg cannot be read: image file is truncated'),
    ):
        as_array(image)
