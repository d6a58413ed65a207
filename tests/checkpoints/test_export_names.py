"""Exports to transformers and to the authors' names: every name and every value."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from toys import images, same, scramble
from wrong_files import Size, below, encoder

from bootmae.checkpoints import find_encoder, load_encoder_weights, read_checkpoint
from bootmae.checkpoints.export import convert, export
from bootmae.checkpoints.identify import IMAGENET_MEAN

# --- transformers ---


HF_BLOCK = {
    'layernorm_before': 'norm1',
    'layernorm_after': 'norm2',
    'attention.output.dense': 'attn.proj',
    'intermediate.dense': 'mlp.fc1',
    'output.dense': 'mlp.fc2',
}


def test_hf_names_and_values(tmp_path, sources):
    path, state = sources('run')
    convert(path, 'hf', tmp_path / 'model.safetensors')
    theirs = read_checkpoint(tmp_path / 'model.safetensors')['state_dict']
    ours = find_encoder(dict(state_dict=state)).state
    expected = {'embeddings.cls_token': ours['cls_token'], 'embeddings.position_embeddings': ours['pos_embed']}
    for kind in ('weight', 'bias'):
        expected |= {
            f'embeddings.patch_embeddings.projection.{kind}': ours[f'patch_embed.proj.{kind}'],
            f'layernorm.{kind}': ours[f'norm.{kind}'],
        }
        for k in range(3):
            expected |= {f'encoder.layer.{k}.{a}.{kind}': ours[f'blocks.{k}.{b}.{kind}'] for a, b in HF_BLOCK.items()}
    for k in range(3):
        attention, block = f'encoder.layer.{k}.attention.attention', f'blocks.{k}.attn'
        parts = dict(zip(('query', 'key', 'value'), ours[f'{block}.qkv.weight'].split(24)))
        expected |= {f'{attention}.{part}.weight': value for part, value in parts.items()}
        expected |= {
            f'{attention}.query.bias': ours[f'{block}.q_bias'],
            f'{attention}.key.bias': torch.zeros(24),
            f'{attention}.value.bias': ours[f'{block}.v_bias'],
        }
    assert same(theirs, expected)


@pytest.mark.parametrize('to, text', [('hf', ', or a folder for from_pretrained'), ('safetensors', '')])
def test_safetensors_only(tmp_path, sources, to, text):
    with pytest.raises(ValueError, match=f'a.pth: for --to {to} give a name that ends in .safetensors.*{text}'):
        convert(sources('run')[0], to, tmp_path / 'a.pth')


def test_hf_model_in_memory_and_with_a_classifier():
    """Names that transformers 5 uses in memory, a prefix, and a pooler and a classifier, which are left out."""
    ours = encoder(Size())
    stored = export(dict(state_dict=below('backbone.', ours)), 'hf').weights['state_dict']
    memory = {
        key.replace('encoder.layer', 'layers')
        .replace('attention.attention.query', 'attention.q_proj')
        .replace('attention.attention.key', 'attention.k_proj')
        .replace('attention.output.dense', 'attention.o_proj')
        .replace('attention.attention.value', 'attention.v_proj')
        .replace('intermediate.dense', 'mlp.fc1')
        .replace('.output.dense', '.mlp.fc2'): value
        for key, value in stored.items()
    }
    assert 'layers.0.mlp.fc2.weight' in memory
    assert same(find_encoder(memory).state, ours)
    heads = {'vit.pooler.dense.weight': torch.ones(2), 'classifier.bias': torch.ones(2)}
    found = find_encoder(below('vit.', stored) | heads)
    assert same(found.state, ours)
    assert found.kind == "transformers ViT below 'vit.'"
    mae = find_encoder(below('vit.', stored) | {'decoder.decoder_layers.0.layernorm_before.weight': torch.ones(2)})
    assert (mae.kind, mae.mean) == ("transformers MAE below 'vit.'", IMAGENET_MEAN)
    assert same(mae.state, ours)


@pytest.mark.parametrize(
    'lost', ['encoder.layer.1.attention.attention.key.bias', 'encoder.layer.1.attention.attention.query.weight']
)
def test_hf_attention_in_part(lost):
    stored = export(dict(state_dict=below('backbone.', encoder(Size()))), 'hf').weights['state_dict']
    del stored[lost]
    with pytest.raises(ValueError, match=r'blocks.1.attn.(weight|bias): query, key or value is missing'):
        find_encoder(stored)


def test_transformers_features(tmp_path, sources, make_vit):
    transformers = pytest.importorskip('transformers')
    path, _ = sources('run')
    convert(path, 'hf', tmp_path / 'model.safetensors')
    transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    ).save_pretrained(tmp_path)
    theirs, report = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    ours = make_vit().float()
    load_encoder_weights(ours, path)
    assert_close(theirs.eval()(images()).last_hidden_state, ours(images())[0], rtol=1e-5, atol=1e-5)


# --- the authors' names ---


def golden_state(golden, file: str, prefix: str) -> dict:
    with np.load(golden / f'compact_{file}.npz') as archive:
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in archive.items()
            if key.startswith(prefix)
        }


def test_authors_files_come_back(golden):
    """The release's weights through our names and back: all names, all values."""
    online, momentum = (golden_state(golden, 'odd_heads', prefix) for prefix in ('online/', 'momentum/'))
    ours = export(dict(model=online, model_ema=momentum), 'safetensors')
    out = export(ours.content, 'authors').weights
    assert same(out['model'], online)
    assert set(out['model_ema']) == {key for key in momentum if key.startswith(('cls_', 'pos_', 'patch_', 'blocks.'))}
    assert all(torch.equal(value, momentum[key]) for key, value in out['model_ema'].items())
    tuned = golden_state(golden, 'finetune', 'model/')
    assert same(export(export(dict(model=tuned), 'safetensors').content, 'authors').weights['model'], tuned)
    seg = below('backbone.', golden_state(golden, 'segmentation', 'backbone/')) | {
        'decode_head.conv_seg.bias': torch.ones(3)
    }
    assert 'backbone.blocks.3.attn.relative_position_index' in seg
    assert same(export(export(dict(state_dict=seg), 'mmseg').content, 'authors').weights['state_dict'], seg)


def test_authors_momentum_only(golden):
    online, momentum = (golden_state(golden, 'odd_heads', prefix) for prefix in ('online/', 'momentum/'))
    out = export(dict(model=online, model_ema=momentum), 'authors', 'momentum')
    assert set(out.weights) == {'model'}
    assert all(torch.equal(value, momentum[key]) for key, value in out.weights['model'].items())
    assert out.facts['source'] == 'momentum'


def test_a_part_that_the_release_does_not_have(make_bootmae):
    state = scramble(make_bootmae().float()) | {'projector.weight': torch.ones(2, 2)}
    with pytest.raises(ValueError, match='the release has no place for projector: use --to safetensors'):
        export(dict(state_dict=state), 'authors')


def test_positions_of_the_feature_decoder_have_no_place_of_their_own(make_bootmae):
    state = scramble(make_bootmae().float())
    state['feature_decoder.pos_embed'] = state['feature_decoder.pos_embed'] + 1
    with pytest.raises(ValueError, match='feature_decoder.pos_embed differs from backbone.pos_embed'):
        export(dict(state_dict=state), 'authors')
