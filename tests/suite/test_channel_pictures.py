"""Pictures of a suite on images of five channels, from files with random weights; and pictures that cannot be drawn."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from test_spec import cells_of
from test_suite_pictures import finished

from bootmae.config.channels import format_of_config
from bootmae.data.reading import read_image
from bootmae.suite import page
from bootmae.suite.cells import Cell
from bootmae.suite.collect import cell_config
from bootmae.visualization.reconstruct import as_colors, brightness
from examples import channel_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Files of 64 px, as large as the models' input."""
    root = tmp_path_factory.mktemp('channels')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_images, 'SIZE', 64)
        channel_images.write(root, train=1, val=1)
    return root


@pytest.fixture
def cells(root, tmp_path):
    images, scenes = {'images': [str(root / 'tiff')]}, {'images': [str(root / 'scenes')]}
    cells = cells_of(
        tmp_path,
        methods=['bootmae'],
        seeds=[0],
        pretrain={'config': 'configs/pretrain/{method}_channels_cpu.py', 'options': images},
        tasks={
            'knn': {'config': 'configs/cls/bootmae_channels_cpu_finetune.py', 'options': images, 'data': 'photos'},
            'segmentation': {'config': 'configs/seg/upernet_channels_cpu.py', 'options': scenes, 'data': 'scenes'},
        },
    )
    return [finished(cell) if cell.trains else cell for cell in cells]


def read(cell: Cell, files: Iterable[Path]) -> np.ndarray:
    channels = format_of_config(cell_config(cell))
    return np.stack([read_image(str(path), channels) for path in sorted(files)])


def stretched(images: np.ndarray) -> np.ndarray:
    """The first three channels in red, green and blue, between the percentiles of all images."""
    return as_colors(images, [0, 1, 2], brightness(images, [0, 1, 2]))


def test_channels_are_shown_as_colors(cells, root, monkeypatch):
    drawn, scenes = {}, []
    monkeypatch.setattr(page, 'reconstruction_grid', lambda panels: drawn.update(panels) or b'picture')
    monkeypatch.setattr(page, 'segmentation_grid', lambda images, *_: scenes.append(images) or b'picture')
    assert page.reconstructions(cells) == {"Test images under BootMAE's block-wise masks, seed 0": b'picture'}
    images, files = page.test_images(cell_config(cells[1]), 6), read(cells[1], root.glob('tiff/val/*/*.tif'))
    assert images.shape == files.shape == (6, 64, 64, 5)
    means = images.mean(axis=(1, 2)), files.mean(axis=(1, 2))
    np.testing.assert_allclose(*means, atol=12)  # one is cropped
    assert np.abs(means[0] - means[1][:, ::-1]).max() > 30, 'the order of the channels matters'
    original = stretched(images)
    assert np.array_equal(drawn['original'], original)
    visible = (drawn['masked'] == original).all(axis=-1)
    assert 0.1 < visible.mean() < 0.5
    assert drawn['bootmae'].shape == original.shape
    assert np.abs(drawn['bootmae'].astype(int) - original)[visible].max() < 6, 'the same but for rounding before colors'
    assert list(page.predictions(cells)) == ['scenes, segmentation: the first test images, runs of seed 0']
    files = sorted(root.glob('scenes/images/validation/*'))[: page.PREDICTED]
    assert np.array_equal(scenes[0], stretched(read(cells[2], files)))


def test_a_picture_that_fails_is_left_out(cells, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError('no room')

    monkeypatch.setattr(page, 'reconstruction_grid', fail)
    monkeypatch.setattr(page, 'predict', fail)
    assert (page.reconstructions(cells), page.predictions(cells)) == ({}, {})
    lines = capsys.readouterr().err.splitlines()
    for caption in ("Test images under BootMAE's", 'scenes, segmentation'):
        assert any(
            f'the report has no picture "{caption}' in line and 'RuntimeError: no room' in line for line in lines
        )
