"""Reconstructions: pasted patches, leaks, and statistics."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from bootmae.models.mae import channel_first, channel_last
from bootmae.models.objectives import normalize_patches
from bootmae.visualization.reconstruct import as_colors, brightness, hide, reconstruct, shown_channels

PATCH, MASKED = (8, 8), 11
PREPROCESSOR = dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0])


@pytest.fixture
def pictures():
    return np.random.RandomState(1).randint(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def ids_shuffle():
    return np.stack([np.random.RandomState(seed).permutation(16) for seed in range(3)])


@pytest.fixture(params=['BootMAE', 'MAE'])
def model(request, make_bootmae, randomize):
    if request.param == 'BootMAE':
        return make_bootmae(data_preprocessor=PREPROCESSOR).float().eval()
    arch = dict(embed_dims=24, num_layers=2, num_heads=4, feedforward_channels=48)
    return randomize(
        MODELS.build(
            dict(
                type='mmpretrain.MAE',
                data_preprocessor=PREPROCESSOR,
                backbone=dict(type='MAEViT', arch=arch, img_size=32, patch_size=8),
                neck=dict(
                    type='MAEPretrainDecoder',
                    num_patches=16,
                    patch_size=8,
                    embed_dim=24,
                    decoder_embed_dim=16,
                    decoder_depth=1,
                    decoder_num_heads=2,
                ),
                head=dict(
                    type='MAEPretrainHead',
                    norm_pix=True,
                    patch_size=8,
                    loss=dict(type='PixelReconstructionLoss', criterion='L2'),
                ),
            )
        )
    ).eval()


def masked_pixels(ids_shuffle: np.ndarray) -> np.ndarray:
    """(n, 32, 32) bool."""
    white = np.full((3, 32, 32, 3), 255, dtype=np.uint8)
    return (hide(white, ids_shuffle, MASKED, PATCH, gray=0) == 0)[..., 0]


def test_visible_patches_are_pasted(model, pictures, ids_shuffle):
    hidden = masked_pixels(ids_shuffle)
    assert hidden.sum() == 3 * MASKED * 64
    for statistics in ('own', 'one', *(['none'] if type(model).__name__ == 'MAE' else [])):
        shown = reconstruct(model, pictures, ids_shuffle, MASKED, PATCH, statistics)
        assert np.array_equal(shown[~hidden], pictures[~hidden])
        assert (shown[hidden] != pictures[hidden]).mean() > 0.9


def test_one_mean_and_deviation_leak_nothing(model, pictures, ids_shuffle):
    """With other pixels under the mask no predicted pixel changes, but with the leak nearly all do."""
    hidden = masked_pixels(ids_shuffle)
    changed = np.where(hidden[..., None], pictures // 3 + 90, pictures).astype(np.uint8)
    before, after = (reconstruct(model, x, ids_shuffle, MASKED, PATCH, 'one') for x in (pictures, changed))
    assert np.array_equal(before[hidden], after[hidden])
    before, after = (reconstruct(model, x, ids_shuffle, MASKED, PATCH, 'own') for x in (pictures, changed))
    assert (before[hidden] != after[hidden]).mean() > 0.5


def test_statistics_of_a_perfect_prediction(make_bootmae, monkeypatch, pictures, ids_shuffle):
    """Perfect predictions give the image back with own statistics, and the documented values with one pair."""
    model = make_bootmae(data_preprocessor=PREPROCESSOR).float().eval()
    predict = model.predict

    def perfect(x, ids_shuffle):
        out = predict(x, ids_shuffle)
        out.pixels = normalize_patches(out.patches)
        return out

    monkeypatch.setattr(model, 'predict', perfect)
    assert np.abs(reconstruct(model, pictures, ids_shuffle, MASKED, PATCH).astype(int) - pictures).max() <= 1
    shown = reconstruct(model, pictures, ids_shuffle, MASKED, PATCH, 'one')
    tiles = pictures.reshape(3, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 64, 3).astype(float)
    visible = np.stack([tiles[n, ids_shuffle[n, :-MASKED]] for n in range(3)])
    mean, deviation = visible.mean((0, 1, 2)), np.sqrt(visible.var(2).mean((0, 1)))
    tile = tiles[1, ids_shuffle[1, -1]]
    expected = (tile - tile.mean(0)) / tile.std(0) * deviation + mean
    row, column = divmod(int(ids_shuffle[1, -1]), 4)
    found = shown[1, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(64, 3)
    assert np.abs(found - expected.clip(0, 255)).max() <= 1


def test_targets_of_ablations(make_bootmae, monkeypatch, pictures, ids_shuffle):
    """A perfect prediction gives the image back for BootMAE's target over all channels, too."""
    model = make_bootmae(data_preprocessor=PREPROCESSOR, per_channel=False).float().eval()
    predict = model.predict

    def perfect(x, ids_shuffle):
        out = predict(x, ids_shuffle)
        out.pixels = normalize_patches(out.patches, 1)
        return out

    monkeypatch.setattr(model, 'predict', perfect)
    assert np.abs(reconstruct(model, pictures, ids_shuffle, MASKED, PATCH).astype(int) - pictures).max() <= 1


def test_channels_first_and_last():
    patch = torch.arange(12).view(1, 12)  # 3 channels of 4 pixels
    assert channel_last(patch, 3)[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(channel_first(channel_last(patch, 3), 3), patch)


def test_channels_of_a_small_range_are_stretched():
    """One percent at each end is black and white; 8-bit colors stay as they are."""
    images = np.random.RandomState(0).uniform(10, 30, (2, 40, 40, 5)).astype(np.float32)
    chosen = shown_channels(images, [4])
    shown = as_colors(images, chosen, brightness(images, chosen))
    assert (shown[..., 0] == shown[..., 2]).all()
    assert (shown == 0).mean() == pytest.approx(0.012, abs=0.003)
    assert (shown == 255).mean() == pytest.approx(0.012, abs=0.003)
    assert shown.mean() == pytest.approx(127.5, abs=3)
    assert np.array_equal(as_colors(images, [0, 1, 2]), images[..., :3].round())
    colors = images.astype(np.uint8)[..., :3]
    assert np.array_equal(as_colors(colors, shown_channels(colors)), colors)
    constant = np.full((1, 4, 4, 1), 7.0)
    assert (as_colors(constant, [0], brightness(constant, [0])) == 0).all()
