"""Conversion of the names of the release, mmpretrain and timm to ours."""

import json
import string

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

from bootmae.checkpoints.keys import (
    authors_key,
    drop_key_bias,
    from_authors,
    from_authors_finetuned,
    from_mmpretrain,
    from_timm,
    fuse_qkv_bias,
    rename,
    split_qkv_bias,
    to_authors,
)


@pytest.mark.parametrize(
    'theirs, ours',
    [
        ('cls_token', 'backbone.cls_token'),
        ('pos_embed', 'backbone.pos_embed'),
        ('patch_embed.proj.weight', 'backbone.patch_embed.proj.weight'),
        ('blocks.11.attn.q_bias', 'backbone.blocks.11.attn.q_bias'),
        ('norm.bias', 'backbone.norm.bias'),
        ('fc_norm.weight', 'backbone.fc_norm.weight'),
        ('de_pos_embed', 'pixel_decoder.pos_embed'),
        ('mask_token', 'pixel_decoder.mask_token'),
        ('mask_token_1', 'feature_decoder.mask_token'),
        ('down.weight', 'pixel_decoder.embed.weight'),
        ('down_1.bias', 'feature_decoder.embed.bias'),
        ('decode_norm.weight', 'pixel_decoder.norm.weight'),
        ('decode_norm_1.bias', 'feature_decoder.norm.bias'),
        ('lm_head.proj.weight', 'pixel_decoder.head.weight'),
        ('lm_head_1.weight', 'feature_decoder.head.weight'),
        ('decode_blocks.0.norm1.weight', 'pixel_decoder.blocks.0.self_norm.weight'),
        ('decode_blocks.0.norm2.weight', 'pixel_decoder.blocks.0.mlp_norm.weight'),
        ('decode_blocks.0.norm3.bias', 'pixel_decoder.blocks.0.cross_norm.bias'),
        ('decode_blocks_1.12.norm4.bias', 'feature_decoder.blocks.12.context_norm.bias'),
        ('decode_blocks_1.1.attn.qkv.weight', 'feature_decoder.blocks.1.self_attn.qkv.weight'),
        ('decode_blocks.1.c_attn.kv.weight', 'pixel_decoder.blocks.1.cross_attn.kv.weight'),
        ('decode_blocks.1.c_attn.v_bias', 'pixel_decoder.blocks.1.cross_attn.v_bias'),
        ('decode_blocks.1.mlp.fc2.bias', 'pixel_decoder.blocks.1.mlp.fc2.bias'),
    ],
)
def test_release_names(theirs, ours):
    assert authors_key(theirs) == ours


@pytest.mark.parametrize(
    'name',
    [
        'head.weight',
        'gamma_1',
        'normal.weight',
        'decode_blocks_2.0.norm1.weight',
        'decode_blocks.0.norm5.weight',
        'decode_blocks.0.gamma_1',
        'decode_blocks.norm1.weight',
        'down_2.weight',
        'decoder_embed.weight',
        'x.cls_token',
        'my_mask_token',
        '',
    ],
)
def test_other_names(name):
    assert authors_key(name) is None


def test_vit_b_names_are_all_of_the_model_s(golden):
    """The release's list of ViT-B parameters maps one to one to ours."""
    release = json.loads((golden / 'schedules.json').read_text())
    with torch.device('meta'):
        model = MODELS.build(dict(type='BootMAE', backbone=dict(type='PlainViT', arch='base')))
    names = [authors_key(name) for name in release['pretrain_decay_base'] + release['pretrain_no_decay_base']]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def release_weights(golden):
    """Online and momentum weights of the release, at toy size."""
    with np.load(golden / 'compact_odd_heads.npz') as file:
        arrays = {key: torch.from_numpy(value) for key, value in file.items() if '/' in key}
    return tuple(
        {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        for prefix in ('online/', 'momentum/')
    )


def test_from_authors(release_weights):
    online, momentum = release_weights
    before = dict(online)
    state = from_authors(online, momentum)
    assert online == before
    assert len(state) == len(online) + 1 + sum(key.startswith('momentum.') for key in state)
    for name, value in online.items():
        assert state[authors_key(name)] is value
    assert state['feature_decoder.pos_embed'] is online['pos_embed']
    kept = {key.removeprefix('momentum.'): value for key, value in state.items() if key.startswith('momentum.')}
    assert kept == {
        key: value
        for key, value in momentum.items()
        if key.startswith(('cls_token', 'pos_embed', 'patch_embed.', 'blocks.'))
    }


def test_from_authors_without_momentum(release_weights):
    state = from_authors(release_weights[0])
    assert not any(key.startswith('momentum.') for key in state)


def test_from_authors_refuses_other_files(release_weights):
    with pytest.raises(ValueError, match=r"not a BootMAE pretraining file: unknown weights \['decoder_embed.weight'\]"):
        from_authors(release_weights[0] | {'decoder_embed.weight': torch.zeros(1)})


def test_authors_finetuned():
    state = from_authors_finetuned({'head.weight': 1, 'head.bias': 2, 'fc_norm.weight': 3, 'blocks.0.norm1.bias': 4})
    assert state == {
        'head.fc.weight': 1,
        'head.fc.bias': 2,
        'backbone.fc_norm.weight': 3,
        'backbone.blocks.0.norm1.bias': 4,
    }


def test_key_bias_is_dropped():
    q, v = drop_key_bias(torch.arange(12))
    assert (q.tolist(), v.tolist()) == ([0, 1, 2, 3], [8, 9, 10, 11])


@pytest.mark.parametrize('convert', [split_qkv_bias, from_timm, from_mmpretrain])
def test_fused_biases_are_split(convert):
    state = {
        'blocks.3.attn.qkv.bias': torch.arange(6),
        'blocks.3.attn.qkv.weight': torch.ones(6, 2),
        'blocks.3.attn.proj.bias': torch.zeros(2),
    }
    ours = convert(state)
    assert {key: value.tolist() for key, value in ours.items()} == {
        'blocks.3.attn.q_bias': [0, 1],
        'blocks.3.attn.v_bias': [4, 5],
        'blocks.3.attn.qkv.weight': [[1, 1]] * 6,
        'blocks.3.attn.proj.bias': [0, 0],
    }
    assert set(state) == {'blocks.3.attn.qkv.bias', 'blocks.3.attn.qkv.weight', 'blocks.3.attn.proj.bias'}


def test_mmpretrain_names():
    names = dict(
        zip(
            string.ascii_letters,
            [
                'cls_token',
                'pos_embed',
                'patch_embed.projection.weight',
                'layers.0.ln1.weight',
                'layers.10.ln2.bias',
                'layers.1.attn.qkv.weight',
                'layers.1.attn.proj.bias',
                'layers.1.ffn.layers.0.0.weight',
                'layers.1.ffn.layers.1.bias',
                'ln1.weight',
                'ln2.bias',
            ],
            strict=False,
        )
    )
    ours = from_mmpretrain({name: letter for letter, name in names.items()})
    assert list(ours) == [
        'cls_token',
        'pos_embed',
        'patch_embed.proj.weight',
        'blocks.0.norm1.weight',
        'blocks.10.norm2.bias',
        'blocks.1.attn.qkv.weight',
        'blocks.1.attn.proj.bias',
        'blocks.1.mlp.fc1.weight',
        'blocks.1.mlp.fc2.bias',
        'norm.weight',
        'fc_norm.bias',
    ]
    assert list(ours.values()) == list(names)


def test_biases_are_fused():
    state = {
        'blocks.3.attn.q_bias': torch.tensor([1.0, 2.0]),
        'blocks.3.attn.v_bias': torch.tensor([3.0, 4.0]),
        'norm.bias': torch.ones(1),
    }
    fused = fuse_qkv_bias(state)
    assert {key: value.tolist() for key, value in fused.items()} == {
        'blocks.3.attn.qkv.bias': [1, 2, 0, 0, 3, 4],
        'norm.bias': [1],
    }
    assert split_qkv_bias(fused).keys() == state.keys()


def test_rename_takes_the_first_row_that_fits():
    table = (('a.#.b.', 'x.#.y.'), ('a.#.', 'z.#.'), ('norm.', 'ln.'))
    names = ['a.0.b.c', 'a.12.q', 'a.b.c', 'norm.w', 'my.norm.w', 'a.1.b']
    theirs = rename(dict.fromkeys(names), table)
    assert list(theirs) == ['x.0.y.c', 'z.12.q', 'a.b.c', 'ln.w', 'my.norm.w', 'z.1.b']
    assert list(rename(theirs, table, back=True)) == names


def test_to_authors_undoes_from_authors(release_weights):
    online, momentum = release_weights
    back, ema = to_authors(from_authors(online, momentum))
    assert back == online
    assert ema == {
        key: value
        for key, value in momentum.items()
        if authors_key(key).startswith('backbone.') and not key.startswith('norm.')
    }
