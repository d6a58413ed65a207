"""Statistics of a data set for each channel, compared with those of all its pixels at once."""

import sys
from pathlib import Path

import numpy as np
import pytest
from calling import call_tool

sys.path.append(str(Path(__file__).resolve().parents[1] / 'data'))

from channel_files import npy, pixels, tiff

from bootmae.commands import channel_statistics
from bootmae.commands.channel_statistics import measure
from bootmae.data.channels import ChannelFormat

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'pretrain' / 'bootmae_channels_cpu.py'


@pytest.fixture
def images(tmp_path) -> list[np.ndarray]:
    """Three images of different sizes and ranges, as TIFF files below ``tmp_path``."""
    images = [pixels(high=high, size=size) for high, size in ((4095, (30, 40)), (3000, (20, 25)), (700, (35, 30)))]
    for number, image in enumerate(images):
        (tmp_path / f'{number}.tif').write_bytes(tiff(image))
    return images


def setting_of(text: str) -> dict:
    """Run the printed setting as a config would."""
    found = {}
    exec(text[text.index('image_channels = ') :], found)
    return found['image_channels']


@pytest.mark.parametrize('workers', [0, 2])
def test_statistics_equal_those_of_all_pixels(images, workers, tmp_path):
    channels = ChannelFormat(5, ranges=(100, 4000))
    found = measure(sorted(map(str, tmp_path.glob('*.tif'))), channels, (1, 99), workers)
    everything = np.concatenate([image.reshape(-1, 5) for image in images]).astype(np.float64)
    scaled = 255 * ((everything - 100) / 3900).clip(0, 1)
    np.testing.assert_allclose(found.mean, scaled.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, scaled.std(axis=0), rtol=1e-5)
    assert np.array_equal([found.low, found.high], [everything.min(axis=0), everything.max(axis=0)])
    assert (found.images, found.kinds, found.unreadable) == (3, ['uint16'], [])


def test_ranges_are_percentiles_of_the_data_set(images, tmp_path, monkeypatch):
    monkeypatch.setattr(channel_statistics, 'OF_IMAGE', 10**6)
    found = measure(sorted(map(str, tmp_path.glob('*.tif'))), ChannelFormat(5), (2, 90))
    everything = np.concatenate([image.reshape(-1, 5) for image in images])
    # a sample of as many pixels, drawn with replacement
    np.testing.assert_allclose(found.tails, np.percentile(everything, (2, 90), axis=0), rtol=0.1, atol=60)
    low, high = np.array(found.channels.ranges).T
    np.testing.assert_allclose(
        found.mean, (255 * ((everything - low) / (high - low)).clip(0, 1)).mean(axis=0), rtol=1e-5
    )


def test_the_tool_prints_a_setting_that_a_run_can_use(images, tmp_path, capsys):
    (tmp_path / 'broken.tif').write_bytes(b'II*\0')
    assert call_tool('channel_statistics', tmp_path, '--ranges', 0, 4095) == 0
    out, err = capsys.readouterr()
    setting = setting_of(out)
    assert (setting['number'], setting['ranges'], len(setting['mean'])) == (5, [0, 4095], 5)
    assert 'axis' not in setting
    assert 'left out 1 unreadable image' in err
    assert f'{tmp_path}/broken.tif cannot be decoded as TIFF' in err
    assert call_tool('channel_statistics', CONFIG, '--data', tmp_path) == 0
    assert setting_of(capsys.readouterr().out) == setting


def test_number_and_axis_are_those_of_the_first_file(tmp_path, capsys):
    (tmp_path / 'a.npy').write_bytes(npy(pixels(3, 'float32', 1.0).transpose(2, 0, 1)))
    assert call_tool('channel_statistics', tmp_path) == 0
    setting = setting_of(capsys.readouterr().out)
    assert (setting['number'], setting['axis']) == (3, 'first')
    assert all(0 <= low < high <= 1 for low, high in setting['ranges'])
    assert call_tool('channel_statistics', tmp_path, '--number', 1, '--axis', 'first') == 2
    assert 'no image can be read' in capsys.readouterr().err
    assert call_tool('channel_statistics', tmp_path, '--tails', 99, 1) == 2
    assert '--tails 99.0 1.0: give two percentages' in capsys.readouterr().err
    assert call_tool('channel_statistics', CONFIG.with_name('bootmae_debug.py')) == 2
    assert 'trains on images in memory: give a config for image files' in capsys.readouterr().err
