"""Encoders for another number of input channels: refused, or adapted on request and reported."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from bootmae.checkpoints import load_encoder_weights
from bootmae.checkpoints.load import adapt_channels
from bootmae.config.load import load_config
from bootmae.config.weights import apply_init

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DTYPE = torch.float64


@pytest.fixture
def file_of(make_vit, tmp_path):
    """``file_of(channels)``: a file with an encoder for images of so many channels, and the encoder."""

    def make(channels: int):
        model = make_vit(in_channels=channels)
        torch.save(
            dict(state_dict={f'backbone.{key}': value for key, value in model.state_dict().items()}), tmp_path / 'a.pth'
        )
        return tmp_path / 'a.pth', model

    return make


CASES = [(3, 5, 'repeat'), (3, 5, 'sum'), (3, 6, 'repeat'), (5, 3, 'sum'), (3, 1, 'sum'), (1, 4, 'repeat')]


@pytest.mark.parametrize(('old', 'new', 'how'), CASES)
def test_images_with_equal_channels_have_the_same_features(old, new, how, file_of, make_vit):
    path, before = file_of(old)
    backbone = make_vit(in_channels=new)
    report = load_encoder_weights(backbone, path, channels=how)
    gray = torch.randn(2, 1, 32, 32, dtype=DTYPE)
    assert_close(
        backbone(gray.expand(-1, new, -1, -1))[0], before(gray.expand(-1, old, -1, -1))[0], rtol=1e-9, atol=1e-9
    )
    channels = f'{old} input channel{"s" if old > 1 else ""} to {new} ({how})'
    assert f'adapted: patch embedding from {channels}, with the input statistics of the config' in str(report)


def test_repeat_keeps_the_filters_of_their_channels():
    weight = torch.randn(4, 3, 2, 2, dtype=DTYPE)
    found = adapt_channels(weight, 5, 'repeat')
    expected = torch.stack(
        [weight[:, 0] / 2, weight[:, 1] / 2, weight[:, 2], weight[:, 0] / 2, weight[:, 1] / 2], dim=1
    )
    assert torch.equal(found, expected)
    assert torch.equal(adapt_channels(weight, 3, 'repeat'), weight)
    with pytest.raises(ValueError, match='loses filters from 3 to 2 channels: use sum'):
        adapt_channels(weight, 2, 'repeat')


def test_without_the_option_nothing_is_loaded(file_of, make_vit):
    path, _ = file_of(3)
    backbone = make_vit(in_channels=5)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match='it has 3 input channels, the model has 5; .* adapt_channels=repeat or'):
        load_encoder_weights(backbone, path)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not load_encoder_weights(make_vit(), path, channels='sum').adapted


def test_the_setting_of_a_config(file_of, tmp_path):
    def cfg_of(**options):
        small = {'model.backbone.arch': dict(embed_dims=24, depth=3, num_heads=4), 'model.backbone.img_size': 32}
        return load_config(CONFIGS / 'cls' / 'bootmae_channels_cpu_finetune.py', small | options)

    path, _ = file_of(3)
    cfg = cfg_of(adapt_channels='repeat')
    apply_init(cfg, str(path))
    assert cfg.model.backbone.init_cfg.channels == 'repeat'
    with pytest.raises(ValueError, match='has 3 input channels'):
        apply_init(cfg_of(), str(path))
    with pytest.raises(ValueError, match="adapt_channels='mean' must be repeat, sum or None"):
        apply_init(cfg_of(adapt_channels='mean'), str(path))
