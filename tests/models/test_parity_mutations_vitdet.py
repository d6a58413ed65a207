"""Each likely mistake in ViTDet's backbone makes the comparison with detectron2's results fail."""

import pytest
import torch
from mutations import mutated, normed_outputs, with_kwargs
from torch.nn import functional as F

from bootmae.commands.parity import TOLERANCE, compare
from bootmae.models import layers, positions
from bootmae.transfer.backbone import TransferViT
from bootmae.transfer.pyramid import LayerNorm2d

VITDET, VITDET_SIZE = 'compact_vitdet.npz', 'compact_vitdet_other_size.npz'


def scaled_positions(attend_on_grid):
    """The position terms use scaled queries, as the content terms do."""
    return lambda q, k, v, heads, rows, columns: attend_on_grid(
        q, k, v, heads, *(vectors * vectors.shape[-1] ** -0.5 for vectors in (rows, columns))
    )


def unseen_padding(attend_tiles):
    """Padding does not take part as keys."""

    def attending(self, q, k, v, window):
        padding = (k == 0).all(dim=-1)  # no key bias: of a token of zeros
        bias = torch.zeros(padding.shape[0], 1, 1, padding.shape[1], dtype=q.dtype)
        bias = bias.masked_fill(padding[:, None, None], -torch.inf)
        original = layers.F.scaled_dot_product_attention
        layers.F.scaled_dot_product_attention = lambda *args, **kwargs: original(*args, attn_mask=bias, **kwargs)
        try:
            return attend_tiles(self, q, k, v, window)
        finally:
            layers.F.scaled_dot_product_attention = original

    return attending


def padded_before_norm(split):
    """Padding goes through the norm, so it holds the bias of the norm instead of zeros."""
    return lambda self, x: split(self, x - 0.5) + 0.5


def resized_by(**how):
    def resizing(_):
        def resize(table, side):
            if len(table) == 2 * side - 1:
                return table
            return F.interpolate(table.T.unsqueeze(0), size=2 * side - 1, **how)[0].T

        return resize

    return resizing


def cropped(_):
    """Tables are cropped or clamped instead of interpolated."""

    def resize(table, side):
        spare = (len(table) - (2 * side - 1)) // 2
        return (
            F.pad(table.T.unsqueeze(0), (-spare, -spare), mode='replicate')[0].T
            if spare < 0
            else table[spare : len(table) - spare]
        )

    return resize


VITDET_MUTATIONS = {
    'scale of the positions': (VITDET, mutated(layers, 'attend_on_grid', scaled_positions)),
    'offsets of key minus query': (
        VITDET,
        mutated(layers, 'offset_vectors', lambda f: lambda *args: f(*args).transpose(0, 1)),
    ),
    'rows for columns': (
        VITDET,
        mutated(layers, 'attend_on_grid', lambda f: lambda *args: f(*args[:4], args[5], args[4])),
    ),
    'no positions': (VITDET, mutated(layers, 'offset_vectors', lambda f: lambda *args: 0 * f(*args))),
    'padding left out': (VITDET, mutated(layers.SelfAttention, 'attend_tiles', unseen_padding)),
    'padding before the norm': (VITDET, mutated(layers.Tiling, 'split', padded_before_norm)),
    'no windows': (VITDET, mutated(layers.Tiling, '__init__', lambda f: lambda self, grid, side: f(self, grid))),
    'tables resized at their corners': (
        VITDET_SIZE,
        mutated(positions, 'resize_offsets', resized_by(mode='linear', align_corners=True)),
    ),
    'tables resized to the nearest': (VITDET_SIZE, mutated(positions, 'resize_offsets', resized_by(mode='nearest'))),
    'tables not resized': (VITDET_SIZE, mutated(positions, 'resize_offsets', cropped)),
    'a final norm': (VITDET, mutated(TransferViT, 'forward_blocks', normed_outputs)),
    'no absolute positions': (
        VITDET,
        mutated(TransferViT, 'embed', lambda f: lambda self, patches, places: f(self, patches, 0 * places)),
    ),
    'absolute positions not cubic': (VITDET, mutated(positions.F, 'interpolate', with_kwargs(mode='bilinear'))),
}


@pytest.mark.parametrize('name', VITDET_MUTATIONS)
def test_a_mistake_in_vitdet_is_noticed(golden, monkeypatch, name):
    file, mutate = VITDET_MUTATIONS[name]
    mutate(monkeypatch)
    errors = compare(golden / file)[1]
    assert min(errors.values()) > 1e-5, 'all of them, and not by a hair'


def test_a_mistake_in_the_simple_pyramid_is_noticed(golden, monkeypatch):
    mutated(LayerNorm2d, 'forward', lambda _: lambda self, x: x)(monkeypatch)
    errors = compare(golden / VITDET)[1]
    assert errors.pop('last map') <= TOLERANCE
    assert min(errors.values()) > 1e-2
