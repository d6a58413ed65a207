"""The downstream ViT in mmpretrain, mmseg and mmdet: building, features and layer decay."""

import importlib

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch.testing import assert_close
from transfer_toys import TAPS, images

from bootmae.checkpoints.keys import from_authors_segmentation
from bootmae.engine.optimizers.layer_decay import ViTOptimWrapperConstructor, parameter_table

TOY = dict(
    type='TransferViT',
    arch=dict(embed_dims=8, depth=4, num_heads=2),
    img_size=16,
    patch_size=4,
    relative_positions=True,
    layer_scale=1.0,
    trainable_positions=True,
)


def toy_classifier():
    from mmpretrain.registry import MODELS

    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=TOY,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
        )
    )


def toy_segmentor():
    from mmseg.registry import MODELS

    head = dict(type='FCNHead', in_channels=8, in_index=2, channels=8, num_convs=1, num_classes=3)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=TOY | TAPS,
            decode_head=head,
            data_preprocessor=dict(type='SegDataPreProcessor'),
        )
    )


def toy_detector():
    from mmdet.registry import MODELS

    anchors = dict(type='AnchorGenerator', strides=[1, 2, 4, 8], ratios=[1.0], scales=[1])
    return MODELS.build(
        dict(
            type='SingleStageDetector',
            backbone=TOY | dict(pyramid=dict(type='SimplePyramid', out_channels=8)),
            bbox_head=dict(
                type='RetinaHead',
                num_classes=3,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=anchors,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            ),
        )
    )


TOYS = dict(mmpretrain=toy_classifier, mmseg=toy_segmentor, mmdet=toy_detector)


@pytest.mark.parametrize('library', TOYS)
@pytest.mark.parametrize('name', ['TransferViT', 'mmpretrain.TransferViT'])
def test_builds_from_each_scope(library, name, scope):
    scope(library)
    registry = importlib.import_module(f'{library}.registry').MODELS
    for settings in (TAPS, dict(pyramid=dict(type='SimplePyramid'))):
        model = registry.build(TOY | settings | dict(type=name))
        assert type(model).__module__ == 'bootmae.transfer.backbone'


@pytest.mark.parametrize('library', TOYS)
def test_features_in_each_library(library, randomize, scope):
    scope(library)
    model = randomize(TOYS[library]()).eval()
    x = images(16, 24).float()
    features, expected = model.extract_feat(x), model.backbone(x)
    if library == 'mmpretrain':
        expected = [expected[0].mean(dim=(2, 3))]
    else:
        assert [feature.shape[2:] for feature in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert len(features) == len(expected)
    for ours, theirs in zip(features, expected):
        assert_close(ours, theirs)


@pytest.mark.parametrize('library', TOYS)
def test_layer_decay_groups_in_each_library(library, scope):
    """The rate halves per layer: 2**-5 for the embedding, 2**-(4 - k) for block k, and 1 after the blocks."""
    scope(library)
    model = TOYS[library]()
    table, ndim = parameter_table(model, layer_decay=0.5), {name: p.ndim for name, p in model.named_parameters()}
    assert set(table) == set(ndim)
    expected = {
        'cls_token': (2**-5, False),
        'pos_embed': (2**-5, False),
        'patch_embed.proj.weight': (2**-5, True),
        'patch_embed.proj.bias': (2**-5, False),
    }
    for k in range(4):
        scale = 2.0 ** -(4 - k)
        expected |= {
            f'blocks.{k}.{name}': (scale, True)
            for name in (
                'attn.relative_position_bias_table',
                'attn.qkv.weight',
                'attn.proj.weight',
                'mlp.fc1.weight',
                'mlp.fc2.weight',
            )
        }
        expected |= {
            f'blocks.{k}.{name}': (scale, False)
            for name in (
                'gamma_1',
                'gamma_2',
                'norm1.weight',
                'norm1.bias',
                'attn.q_bias',
                'attn.v_bias',
                'attn.proj.bias',
                'norm2.weight',
                'norm2.bias',
                'mlp.fc1.bias',
                'mlp.fc2.bias',
            )
        }
    rest = {name: value for name, value in table.items() if name.removeprefix('backbone.') not in expected}
    assert {name.removeprefix('backbone.'): value for name, value in table.items() if name not in rest} == expected
    assert rest == {name: (1.0, ndim[name] > 1) for name in rest}
    assert any(name.startswith('backbone.pyramid.') for name in rest) is (library != 'mmpretrain')


@pytest.mark.parametrize('decay_positions', [False, True])
def test_vitb_segmentation_groups(decay_positions):
    """docs/method.md, section 6: layer decay 0.65 over 12 layers, weight decay 0.05, learning rate 4e-4."""
    model = torch.nn.Module()
    with torch.device('meta'):
        model.backbone = MODELS.build(
            dict(
                type='TransferViT',
                arch='base',
                img_size=512,
                patch_size=16,
                out_indices=(3, 5, 7, 11),
                pyramid=dict(type='TapPyramid'),
                relative_positions=True,
                layer_scale=1.0,
                trainable_positions=True,
                drop_path_rate=0.1,
            )
        )
        model.decode_head = torch.nn.Conv2d(768, 150, 1)
    wrapper = ViTOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=4e-4, weight_decay=0.05, foreach=False)),
        dict(layer_decay=0.65, decay_positions=decay_positions),
    )(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    assert len(found) == len(names) == 4 + 12 * 16 + 8 + 2
    assert len(wrapper.optimizer.param_groups) == 2 * 14

    def rate(group):
        return pytest.approx(4e-4 * 0.65 ** (13 - group), rel=1e-12)

    of_positions = (rate(0), 0.05 if decay_positions else 0.0)
    expected = {
        'pos_embed': of_positions,
        'cls_token': of_positions,
        'patch_embed.proj.weight': (rate(0), 0.05),
        'pyramid.up4.0.weight': (rate(13), 0.05),
        'pyramid.up4.1.weight': (rate(13), 0.0),
    }
    for k in range(12):
        expected |= {
            f'blocks.{k}.attn.relative_position_bias_table': (rate(k + 1), 0.05),
            f'blocks.{k}.attn.qkv.weight': (rate(k + 1), 0.05),
            f'blocks.{k}.gamma_2': (rate(k + 1), 0.0),
        }
    assert {name: found[f'backbone.{name}'] for name in expected} == expected
    assert (found['decode_head.weight'], found['decode_head.bias']) == ((4e-4, 0.05), (4e-4, 0.0))


def test_the_release_has_the_same_parameters(golden):
    """Mapped to our names, its weights are our parameters and the statistics of the batch norm."""
    with np.load(golden / 'compact_segmentation.npz') as file:
        state = {
            key.replace('backbone/', 'backbone.'): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith('backbone/')
        }
    mapped = {name.removeprefix('backbone.') for name in from_authors_segmentation(state)}
    ours = {name for name, _ in MODELS.build(TOY | TAPS).named_parameters()}
    assert ours <= mapped
    assert mapped - ours == {f'pyramid.up4.1.{name}' for name in ('running_mean', 'running_var', 'num_batches_tracked')}
