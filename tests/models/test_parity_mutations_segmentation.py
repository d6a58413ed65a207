"""Each likely mistake in the segmentation backbone makes the comparison with the golden file fail, in its levels."""

import pytest
from mutations import mutated, normed_outputs
from torch.nn import functional as F

from bootmae.commands.parity import TOLERANCE, compare
from bootmae.models import layers
from bootmae.transfer import pyramid, windows
from bootmae.transfer.backbone import TransferViT
from bootmae.transfer.pyramid import TapPyramid

SEGMENTATION = 'compact_segmentation.npz'


def bias_between_patches_alone(position_bias):
    """The bias has no entries for pairs with the class token."""

    def patches_alone(self, group):
        bias = position_bias(self, group).clone()
        bias[:, 0], bias[:, :, 0] = 0, 0
        return bias

    return patches_alone


def lacking(name):
    """A block without one of its layer scales."""

    def without(forward):
        def forwarding(self, *args):
            kept, self._parameters[name] = self._parameters[name], None
            try:
                return forward(self, *args)
            finally:
                self._parameters[name] = kept

        return forwarding

    return without


def in_training(forward):
    def forwarding(self, maps):
        self.train()
        return forward(self, maps)

    return forwarding


def class_rows_swapped(relative_index):
    def swapped(*args, **kwargs):
        index = relative_index(*args, **kwargs)
        index[0, 1:], index[1:, 0] = index[1, 0].clone(), index[0, 1].clone()
        return index

    return swapped


ALL = [0, 1, 2, 3]
MUTATIONS = {
    'bias without class-token entries': (
        ALL,
        mutated(layers.SelfAttention, 'position_bias', bias_between_patches_alone),
    ),
    'no bias': (ALL, mutated(layers.SelfAttention, 'position_bias', lambda _: lambda self, group: None)),
    'bias of key minus query': (ALL, mutated(windows, 'relative_index', lambda f: lambda *a, **k: f(*a, **k).T)),
    'bias with the class rows swapped': (ALL, mutated(windows, 'relative_index', class_rows_swapped)),
    'bias of other heads': (
        ALL,
        mutated(layers.SelfAttention, 'position_bias', lambda f: lambda self, group: f(self, group).flip(0)),
    ),
    'no layer scale on attention': (ALL, mutated(layers.Block, 'forward', lacking('gamma_1'))),
    'no layer scale on the MLP': (ALL, mutated(layers.Block, 'forward', lacking('gamma_2'))),
    'no absolute positions': (
        ALL,
        mutated(TransferViT, 'embed', lambda f: lambda self, patches, positions: f(self, patches, 0 * positions)),
    ),
    'final norm before the pyramid': (ALL, mutated(TransferViT, 'forward_blocks', normed_outputs)),
    'taps in another order': ([0, 1, 2, 3], mutated(TapPyramid, 'forward', lambda f: lambda self, x: f(self, x[::-1]))),
    'all levels from the last tap': (
        [0, 1, 2],
        mutated(TapPyramid, 'forward', lambda f: lambda self, x: f(self, x[-1:] * 4)),
    ),
    'batch statistics': ([0], mutated(TapPyramid, 'forward', in_training)),
    'tanh GELU between the steps': (
        [0],
        mutated(pyramid.nn.GELU, 'forward', lambda _: lambda self, x: F.gelu(x, approximate='tanh')),
    ),
    'mean pooling': ([3], mutated(pyramid.F, 'max_pool2d', lambda _: F.avg_pool2d)),
    'no pooling but every second place': (
        [3],
        mutated(pyramid.F, 'max_pool2d', lambda _: lambda x, **kwargs: x[:, :, ::2, ::2]),
    ),
}


@pytest.mark.parametrize('name', MUTATIONS)
def test_a_mistake_in_the_segmentation_backbone_is_noticed(golden, monkeypatch, name):
    wrong, mutate = MUTATIONS[name]
    mutate(monkeypatch)
    errors = compare(golden / SEGMENTATION)[1]
    assert [int(level[-1]) for level, error in errors.items() if error > TOLERANCE] == wrong
    assert all(errors[f'level {level}'] > 1e-5 for level in wrong), 'not by a hair'
