"""Loading: the whole encoder or nothing, with a report."""

import re

import pytest
import torch
from mmpretrain.registry import MODELS
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from bootmae.checkpoints import LoadReport, check_resumable, load_encoder_weights, load_run
from bootmae.checkpoints.load import EncoderWeights, tensors_hash
from bootmae.models.positions import resize_positions, sincos_positions

BLOCK_TENSORS = 13
ENCODER_TENSORS = 3 * BLOCK_TENSORS + 4 + 2  # blocks; class token, positions, patch embedding (2); final norm (2)


@pytest.fixture
def run_file(tmp_path, make_bootmae):
    """A file of a pretraining run, and its model."""
    model = make_bootmae(seed=7)
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), path)
    return path, model


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)


# Whole loading, and what the report says


@pytest.mark.parametrize('source', ['online', 'momentum'])
def test_pooled_backbone(run_file, make_vit, source):
    path, model = run_file
    backbone = make_vit(out_type='avg_featmap')
    fresh = backbone.fc_norm.weight.clone()
    report = load_encoder_weights(backbone, path, source)
    wanted = snapshot(model.backbone if source == 'online' else model.momentum)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, fresh if name == 'fc_norm.weight' else wanted.get(name, value))
    number = ENCODER_TENSORS - 2
    assert report == LoadReport(
        path=str(path),
        kind=f'BootMAE run ({source})',
        loaded=number,
        wanted=number,
        new=['fc_norm.weight', 'fc_norm.bias'],
        unused=['norm.bias', 'norm.weight'] if source == 'online' else [],
        hash=report.hash,
        parts=['fc_norm'],
        remarks=['4 attention heads as in the config (the file does not tell)'],
    )
    unused = ', not used: norm.bias, norm.weight' if source == 'online' else ''
    assert str(report) == (
        f'loaded {number}/{number} encoder tensors of {path} [BootMAE run ({source})], new '
        f'(fc_norm: not in the file): fc_norm.weight, fc_norm.bias{unused}, sha256 {report.hash}; '
        '4 attention heads as in the config (the file does not tell)'
    )
    assert re.fullmatch('[0-9a-f]{12}', report.hash)


def test_backbone_with_final_norm(run_file, make_vit):
    path, model = run_file
    backbone = make_vit()
    report = load_encoder_weights(backbone, path)
    assert unchanged(backbone, snapshot(model.backbone))
    assert (report.loaded, report.wanted, report.new, report.unused) == (ENCODER_TENSORS, ENCODER_TENSORS, [], [])
    assert 'new' not in str(report).replace(str(path), '')
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(backbone(x)[0], model.eval().backbone(x)[0])


def test_inner_blocks_for_linear_probing(run_file, make_vit):
    path, model = run_file
    backbone = make_vit(depth=2, out_type='avg_featmap', frozen=True)
    report = load_encoder_weights(backbone, path)
    assert report.loaded == ENCODER_TENSORS - 2 - BLOCK_TENSORS
    assert report.unused == ['blocks.2', 'norm.bias', 'norm.weight']
    assert torch.equal(backbone.blocks[1].mlp.fc2.weight, model.backbone.blocks[1].mlp.fc2.weight)


def test_safetensors_of_timm(tmp_path, make_vit, randomize):
    theirs = randomize(VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=4, num_classes=7))
    save_file(theirs.state_dict(), tmp_path / 'a.safetensors')
    backbone = make_vit()
    report = load_encoder_weights(backbone, tmp_path / 'a.safetensors')
    assert (report.kind, report.loaded) == ('timm ViT', ENCODER_TENSORS)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert_close(backbone(x)[0], theirs.double().eval().forward_features(x), rtol=1e-6, atol=1e-9)


def test_hash_is_of_the_files_encoder(run_file, tmp_path, make_vit):
    """The hash does not depend on the model or on other parts of the file."""
    path, model = run_file
    first = load_encoder_weights(make_vit(out_type='avg_featmap'), path).hash
    assert load_encoder_weights(make_vit(out_type='avg_featmap'), path).hash == first
    state = model.state_dict()
    copy = tmp_path / 'other.pth'

    def hash_with(**changes):
        torch.save(dict(state_dict=state | {key.replace('__', '.'): value for key, value in changes.items()}), copy)
        return load_encoder_weights(make_vit(out_type='avg_featmap'), copy).hash

    assert hash_with() == first, 'another file and meta, the same weights'
    assert (
        load_encoder_weights(make_vit(depth=2), path).hash
        == load_encoder_weights(make_vit(img_size=48), path).hash
        == first
    )
    assert hash_with(backbone__norm__bias=state['backbone.norm.bias'] + 1) != first
    assert hash_with(pixel_decoder__norm__bias=state['pixel_decoder.norm.bias'] + 1) == first
    bit = state['backbone.blocks.1.mlp.fc1.weight'].clone()
    bit.view(torch.int64)[3, 5] ^= 1
    assert hash_with(**{'backbone.blocks.1.mlp.fc1.weight': bit}) != first


def test_hash_by_hand():
    """The hash covers names, types, shapes and values, but not the order in the dict or the memory layout."""
    state = {'b': torch.arange(6.0).view(2, 3), 'a': torch.tensor(1.5, dtype=torch.bfloat16)}
    first = tensors_hash(state)
    assert tensors_hash(dict(reversed(state.items()))) == first
    assert tensors_hash(state | {'b': torch.arange(6.0).view(2, 3).t().contiguous().t()}) == first
    for change in (
        {'b': torch.arange(6.0).view(3, 2)},
        {'b': torch.arange(6).view(2, 3)},
        {'c': torch.ones(1)},
        {'a': torch.tensor(1.5, dtype=torch.float32)},
        {'b': -torch.arange(6.0).view(2, 3)},
    ):
        assert tensors_hash(state | change) != first
    import hashlib

    expected = hashlib.sha256(b'atorch.float32(2,)' + bytes.fromhex('0000803f00000040')).hexdigest()[:12]
    assert tensors_hash({'a': torch.tensor([1.0, 2.0])}) == expected


# Positions


def test_positions_are_interpolated(run_file, make_vit):
    path, model = run_file
    backbone = make_vit(img_size=(64, 48), out_type='avg_featmap')
    report = load_encoder_weights(backbone, path)
    assert torch.equal(backbone.pos_embed, resize_positions(model.backbone.pos_embed, (4, 4), (8, 6)))
    assert report.loaded == ENCODER_TENSORS - 2
    assert not torch.equal(backbone.pos_embed.float(), sincos_positions((8, 6), 24))


def test_positions_of_a_rectangle_stay_or_are_refused(tmp_path, make_bootmae, make_vit):
    model = make_bootmae(backbone=dict(img_size=(32, 16)), masking={})
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    same = make_vit(img_size=(32, 16))
    load_encoder_weights(same, path)
    assert torch.equal(same.pos_embed, model.backbone.pos_embed)
    other = make_vit()
    before = snapshot(other)
    with pytest.raises(ValueError, match=r'embedding has 8 patches, no square grid, and the model has \(4, 4\)'):
        load_encoder_weights(other, path)
    assert unchanged(other, before)


def test_recorded_rectangle_is_interpolated(tmp_path, make_bootmae, make_vit):
    """4 x 8 and 8 x 4 patches are equally many, but not the same."""
    model = make_bootmae(backbone=dict(img_size=(32, 64)), masking={})
    path = tmp_path / 'a.pth'
    meta = dict(bootmae=dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[32, 64]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    backbone = make_vit(img_size=(64, 32))
    load_encoder_weights(backbone, path)
    assert torch.equal(backbone.pos_embed, resize_positions(model.backbone.pos_embed, (4, 8), (8, 4)))


# Wrong files


def without(state, *names):
    return {key: value for key, value in state.items() if not key.startswith(names)}


WRONG = {
    # name: (backbone, change of the state, message)
    'missing tensor': ({}, lambda s: without(s, 'backbone.blocks.1.mlp.fc1.bias'), '1 missing: blocks.1.mlp.fc1.bias'),
    'missing class token': ({}, lambda s: without(s, 'backbone.cls_token'), '1 missing: cls_token'),
    'missing final norm': ({}, lambda s: without(s, 'backbone.norm.'), '2 missing: norm.weight, norm.bias'),
    'missing block': ({}, lambda s: without(s, 'backbone.blocks.2.'), r"it has 2 blocks, the model's arch has 3"),
    'missing inner block': ({}, lambda s: without(s, 'backbone.blocks.1.'), '13 missing: blocks.1.norm1.weight'),
    'extra tensor': ({}, lambda s: s | {'backbone.blocks.0.gamma_1': torch.ones(24)}, '1 unexpected: blocks.0.gamma_1'),
    'extra embedding': ({}, lambda s: s | {'backbone.reg_token': torch.ones(24)}, '1 unexpected: reg_token'),
    'wrong width': (
        dict(arch=dict(embed_dims=32, depth=3, num_heads=4)),
        dict,
        r'of another shape: cls_token \(1, 1, 24\) for \(1, 1, 32\)',
    ),
    'wrong MLP': (
        dict(arch=dict(embed_dims=24, depth=3, num_heads=4, mlp_ratio=2)),
        dict,
        r'9 of another shape: blocks.0.mlp.fc1.weight \(96, 24\) for \(48, 24\)',
    ),
    'deeper model': (
        dict(arch=dict(embed_dims=24, depth=4, num_heads=4)),
        dict,
        r"it has 3 blocks, the model's arch has 4",
    ),
    'shallower model': (
        dict(arch=dict(embed_dims=24, depth=2, num_heads=4)),
        dict,
        r"it has 3 blocks, the model's arch has 2",
    ),
    'shallower probe of a deeper file': (
        dict(arch=dict(embed_dims=24, depth=2, num_heads=4), depth=1),
        dict,
        r"it has 3 blocks, the model's arch has 2",
    ),
    'wrong patch size': (
        dict(patch_size=16),
        dict,
        r'1 of another shape: patch_embed.proj.weight \(24, 3, 8, 8\) for \(24, 3, 16, 16\)',
    ),
    'wrong channels': (dict(in_channels=1), dict, 'it has 3 input channels, the model has 1; .*adapt_channels'),
    'decoder only': ({}, lambda s: without(s, 'backbone.', 'momentum.'), 'no ViT encoder in this file'),
    'empty': ({}, lambda s: {}, 'no ViT encoder in this file: its weights are named not at all'),
    'two faults': (
        dict(patch_size=16),
        lambda s: without(s, 'backbone.cls_token'),
        '1 missing: cls_token; 1 of another shape',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_files_change_nothing(run_file, make_vit, name):
    kwargs, change, message = WRONG[name]
    path, model = run_file
    torch.save(dict(state_dict=change(model.state_dict())), path)
    backbone = make_vit(**kwargs)
    before = snapshot(backbone)
    with pytest.raises(ValueError, match=message) as error:
        load_encoder_weights(backbone, path)
    assert str(error.value).startswith(f'{path} was not loaded into the backbone: ')
    assert unchanged(backbone, before)


def test_momentum_weights_do_not_fit_a_final_norm(run_file, make_vit):
    """The momentum encoder has no final norm, and a random one would silently spoil its features."""
    backbone = make_vit()
    before = snapshot(backbone)
    with pytest.raises(ValueError, match='2 missing: norm.weight, norm.bias'):
        load_encoder_weights(backbone, run_file[0], 'momentum')
    assert unchanged(backbone, before)


def test_missing_file(tmp_path, make_vit):
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        load_encoder_weights(make_vit(), tmp_path / 'missing.pth')


# As an initializer


def classifier(**init):
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='PlainViT',
                arch=dict(embed_dims=24, depth=3, num_heads=4),
                img_size=32,
                patch_size=8,
                out_type='avg_featmap',
                init_cfg=dict(type='EncoderWeights', **init),
            ),
            head=dict(
                type='LinearClsHead',
                num_classes=5,
                in_channels=24,
                init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02 * 0.001),
            ),
        )
    )


@pytest.mark.parametrize('source', ['online', 'momentum'])
def test_initializer(run_file, source):
    path, pretrained = run_file
    model = classifier(checkpoint=str(path), source=source)
    assert not torch.equal(model.backbone.cls_token.double(), pretrained.backbone.cls_token)
    model.init_weights()
    wanted = (pretrained.backbone if source == 'online' else pretrained.momentum).state_dict()
    for name, value in model.backbone.state_dict().items():
        if not name.startswith('fc_norm.'):
            assert_close(value, wanted[name].float(), rtol=0, atol=0)
    assert (model.backbone.fc_norm.weight == 1).all()
    assert 0 < model.head.fc.weight.abs().max() < 1e-4
    assert model.backbone.load_report.kind == f'BootMAE run ({source})'


def test_a_second_start_keeps_the_weights(run_file):
    path, pretrained = run_file
    backbone = classifier(checkpoint=str(path)).backbone
    for _ in range(2):
        backbone.init_weights()
        assert_close(
            backbone.blocks[0].mlp.fc1.weight.data,
            pretrained.backbone.blocks[0].mlp.fc1.weight.data.float(),
            rtol=0,
            atol=0,
        )


def test_initializer_stops_at_a_wrong_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'missing\.pth'):
        classifier(checkpoint=str(tmp_path / 'missing.pth')).init_weights()
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='no ViT encoder'):
        classifier(checkpoint=str(tmp_path / 'empty.pth')).init_weights()


def test_initializer_takes_the_online_encoder_unless_told(run_file, make_vit):
    path, pretrained = run_file
    backbone = make_vit(out_type='avg_featmap')
    EncoderWeights(str(path))(backbone)
    assert torch.equal(backbone.cls_token, pretrained.backbone.cls_token)


# A whole run


def test_run_is_loaded(make_bootmae):
    saved, model = make_bootmae(seed=1), make_bootmae(seed=2)
    load_run(model, dict(state_dict=saved.state_dict()), 'a.pth')
    assert unchanged(model, saved.state_dict())


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: without(s, 'backbone.cls_token'), r"1 weight missing \['backbone.cls_token'\], 0 unexpected"),
        (lambda s: s | {'head.weight': torch.ones(1)}, r"0 weights missing \[\], 1 unexpected \['head.weight'\]"),
        (lambda s: s | {'backbone.cls_token': torch.ones(1, 1, 25)}, r"1 of another shape \['backbone.cls_token'\]"),
        (lambda s: {}, r'weights missing'),
    ],
)
def test_run_is_loaded_whole_or_not_at_all(make_bootmae, change, message):
    model = make_bootmae(seed=2)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"a.pth is not a checkpoint of this config's BootMAE.*" + message):
        load_run(model, dict(state_dict=change(make_bootmae(seed=1).state_dict())), 'a.pth')
    assert unchanged(model, before)


def test_a_lost_momentum_encoder_is_called_that(make_bootmae):
    state = make_bootmae(seed=1).state_dict()
    with pytest.raises(ValueError, match='Its momentum encoder is missing, and with it the training target. Use'):
        load_run(make_bootmae(), dict(state_dict=without(state, 'momentum.')), 'a.pth')
    with pytest.raises(ValueError, match='Use the config that wrote the file') as error:
        load_run(make_bootmae(), dict(state_dict=without(state, 'backbone.')), 'a.pth')
    assert 'momentum encoder is missing' not in str(error.value)


@pytest.mark.parametrize(
    'content',
    [
        dict(state_dict={}),
        dict(state_dict={}, meta=dict(bootmae={})),
        dict(state_dict={}, meta=dict(epoch=1, iter=2)),
        dict(state_dict={}, meta='x', optimizer={}),
        dict(state_dict={}, meta=dict(epoch=1), optimizer={}),
    ],
)
def test_only_a_run_can_be_resumed(content):
    with pytest.raises(ValueError, match='a.pth holds weights, not a run that can be resumed .*or start a new run'):
        check_resumable(content, 'a.pth')


def test_a_run_can_be_resumed():
    check_resumable(dict(state_dict={}, optimizer={}, meta=dict(epoch=1, iter=2)), 'a.pth')
