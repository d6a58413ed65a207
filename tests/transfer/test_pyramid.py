"""Pyramids: each level by its formula, and the order and size of the levels."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bootmae.transfer.pyramid import LayerNorm2d, SimplePyramid, TapPyramid


def maps(count=4, channels=8, rows=3, columns=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, rows, columns, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.fixture
def make(randomize):
    def build(kind, **kwargs):
        model = randomize(kind(8, **kwargs)).double().eval()
        for name, buffer in model.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
        return model

    return build


def doubled(x, conv):
    """A 2 x 2 transposed convolution of stride 2: four matrices turn each position into a square of four."""
    b, _, rows, columns = x.shape
    out = x.new_zeros(b, conv.out_channels, 2 * rows, 2 * columns)
    for i in range(2):
        for j in range(2):
            out[:, :, i::2, j::2] = torch.einsum('bcrs,cd->bdrs', x, conv.weight[:, :, i, j])
    return out + conv.bias.view(-1, 1, 1)


def normed(x, norm):
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def pooled(x):
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    return torch.stack([x[:, :, i : 2 * rows : 2, j : 2 * columns : 2] for i in range(2) for j in range(2)]).amax(0)


@torch.no_grad()
@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN'), dict(type='SyncBN')])
def test_tap_pyramid_by_formula(make, norm_cfg):
    model, (a, b, c, d) = make(TapPyramid, norm_cfg=norm_cfg), maps()
    first, norm, _, second = model.up4
    assert isinstance(norm, torch.nn.BatchNorm2d if norm_cfg == dict(type='BN') else torch.nn.SyncBatchNorm)
    x = doubled(a, first)
    x = (x - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + 1e-5).sqrt()
    x = F.gelu(x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    levels = model((a, b, c, d))
    assert [tuple(level.shape[2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (1, 2)]
    assert_close(levels[0], doubled(x, second))
    assert_close(levels[1], doubled(b, model.up2[0]))
    assert torch.equal(levels[2], c)
    assert torch.equal(levels[3], pooled(d))


@torch.no_grad()
@pytest.mark.parametrize('extra_level', [False, True])
def test_simple_pyramid_by_formula(make, extra_level):
    model, (unused, x) = make(SimplePyramid, out_channels=6, extra_level=extra_level), maps(2)
    up4, up2, same, down = (list(level) for level in model.levels)
    quadrupled = doubled(F.gelu(normed(doubled(x, up4[0]), up4[1].norm)), up4[3])
    starts = (quadrupled, doubled(x, up2[0]), x, pooled(x))
    assert [start.shape[1] for start in starts] == [2, 4, 8, 8]
    levels = model((unused, x))
    assert [tuple(level.shape) for level in levels[:4]] == [(2, 6, 12, 20), (2, 6, 6, 10), (2, 6, 3, 5), (2, 6, 1, 2)]
    for level, start, tail in zip(levels, starts, (up4[4:], up2[1:], same, down[1:])):
        narrow, norm1, smooth, norm2 = tail
        assert (narrow.bias, smooth.bias) == (None, None)
        out = normed(torch.einsum('bcrs,dc->bdrs', start, narrow.weight[:, :, 0, 0]), norm1.norm)
        out, (rows, columns) = F.pad(out, (1, 1, 1, 1)), start.shape[2:]
        out = sum(
            torch.einsum('bcrs,dc->bdrs', out[:, :, i : i + rows, j : j + columns], smooth.weight[:, :, i, j])
            for i in range(3)
            for j in range(3)
        )
        assert_close(level, normed(out, norm2.norm))
    assert len(levels) == 4 + extra_level
    if extra_level:
        assert torch.equal(levels[4], F.max_pool2d(levels[3], kernel_size=1, stride=2)), 'as detectron2 writes it'


def test_layer_norm_at_each_place():
    norm, x = LayerNorm2d(8).double(), maps(1)[0]
    assert_close(norm(x)[1, :, 2, 3], F.layer_norm(x[1, :, 2, 3], (8,), eps=1e-6))


def test_widths():
    levels = SimplePyramid(768).levels
    assert [level[-4].in_channels for level in levels] == [192, 384, 768, 768]
    assert {level[-2].out_channels for level in levels} == {256}
