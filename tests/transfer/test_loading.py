"""Loading into the downstream ViT: new parts, interpolation, errors, and the three libraries."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from bootmae.checkpoints import find_encoder, load_encoder_weights
from bootmae.checkpoints.keys import from_authors_segmentation
from bootmae.checkpoints.load import families
from bootmae.config.weights import apply_init
from bootmae.models.positions import resize_bias_table, resize_positions

ARCH = dict(embed_dims=24, depth=4, num_heads=4)
TAPS = dict(out_indices=(0, 1, 2, 3), pyramid=dict(type='TapPyramid', norm_cfg=dict(type='BN')))
NEW = dict(relative_positions=True, layer_scale=1.0)
TABLE = 'attn.relative_position_bias_table'


def build(**changes):
    return MODELS.build(dict(type='TransferViT', arch=ARCH, img_size=32, patch_size=8) | changes)


@pytest.fixture
def pretrained(tmp_path, make_bootmae):
    """A checkpoint of a BootMAE run, and the weights of its encoder."""
    model = make_bootmae(backbone=dict(arch=ARCH)).float()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'run.pth')
    return tmp_path / 'run.pth', model.backbone.state_dict()


@pytest.fixture
def authors(golden, tmp_path):
    """``authors(changes)``: a segmentation file of the authors with heads, some weights replaced or dropped."""

    def make(changes=None):
        with np.load(golden / 'compact_segmentation.npz') as file:
            state = {
                key.replace('backbone/', 'backbone.'): torch.from_numpy(file[key])
                for key in file.files
                if key.startswith('backbone/')
            }
        state |= {'decode_head.conv_seg.weight': torch.ones(3, 24, 1, 1), 'auxiliary_head.conv_seg.bias': torch.ones(3)}
        state |= changes or {}
        path = tmp_path / 'segmentation.pth'
        torch.save(dict(state_dict={key: value for key, value in state.items() if value is not None}, meta={}), path)
        return path

    return make


# What may be new


def test_new_parts_may_be_absent(pretrained):
    path, encoder = pretrained
    model = build(**TAPS, **NEW)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_encoder_weights(model, path)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in encoder.items() if not key.startswith('norm.'))
    assert all(torch.equal(state[key], fresh[key]) for key in state if key not in encoder)
    assert set(report.new) == set(state) - set(encoder)
    assert str(report) == (
        f'loaded {len(encoder) - 2}/{len(encoder) - 2} encoder tensors of {path} [BootMAE run (online)], '
        'new (layer scale, relative positions, pyramid: not in the file): '
        f'blocks.*.gamma_1, blocks.*.gamma_2, blocks.*.{TABLE}, pyramid.*, '
        f'not used: norm.bias, norm.weight, sha256 {report.hash}; '
        f'{model.num_heads} attention heads as in the config (the file does not tell)'
    )


def test_what_a_model_declares_as_new():
    assert {part: len(keys) for part, keys in build(**TAPS, **NEW).new_parts.items()} == {
        'layer scale': 8,
        'relative positions': 4,
        'pyramid': 11,
    }
    assert build().new_parts == {}
    pooled = MODELS.build(dict(type='mmpretrain.PlainViT', arch=ARCH, out_type='avg_featmap'))
    assert pooled.new_parts == {'fc_norm': ['fc_norm.weight', 'fc_norm.bias']}


@pytest.mark.parametrize(
    'lost', ['blocks.2.gamma_1', f'blocks.0.{TABLE}', 'pyramid.up2.0.bias', 'blocks.1.norm1.weight']
)
def test_a_part_is_new_as_a_whole_or_not_at_all(tmp_path, lost):
    model = build(**TAPS, **NEW)
    state = {f'backbone.{key}': value + 1 for key, value in model.state_dict().items() if key != lost}
    torch.save(state, tmp_path / 'run.pth')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf'1 missing: {lost}'):
        load_encoder_weights(model, tmp_path / 'run.pth')
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    'has, names',
    [
        (dict(layer_scale=1.0), f'4 unexpected: blocks.0.{TABLE}'),
        (dict(relative_positions=True), '8 unexpected: blocks.0.gamma_1'),
    ],
)
def test_weights_that_the_model_would_ignore_are_refused(authors, has, names):
    with pytest.raises(ValueError, match=names):
        load_encoder_weights(build(img_size=32, patch_size=16, **TAPS, **has), authors())


def test_families():
    assert families(['fc_norm.weight', 'blocks.0.gamma_1', 'blocks.11.gamma_1', 'pyramid.a.b', 'pyramid.c']) == [
        'fc_norm.weight',
        'blocks.*.gamma_1',
        'pyramid.*',
    ]


# What is interpolated


def test_positions_are_interpolated_and_the_verdict_says_so(pretrained):
    path, encoder = pretrained
    model = build(img_size=(48, 64))
    report = load_encoder_weights(model, path)
    assert torch.equal(model.pos_embed, resize_positions(encoder['pos_embed'], (4, 4), (6, 8)))
    assert report.resized == ['pos_embed from 4x4 to 6x8']
    assert ', interpolated: pos_embed from 4x4 to 6x8, not used: ' in str(report)


def test_nothing_is_interpolated_without_need(pretrained):
    report = load_encoder_weights(build(), pretrained[0])
    assert report.resized == []
    assert 'interpolated:' not in str(report)


def test_tables_are_interpolated(authors):
    path = authors()
    model = build(img_size=(48, 64), patch_size=16, **TAPS, **NEW, window_size=3, global_blocks=(1, 3))
    report = load_encoder_weights(model, path)
    stored = torch.load(path)['state_dict']
    for index, grid in enumerate(((3, 3), (3, 4), (3, 3), (3, 4))):
        table = resize_bias_table(stored[f'backbone.blocks.{index}.{TABLE}'], (2, 2), grid)
        assert torch.equal(model.state_dict()[f'blocks.{index}.{TABLE}'], table)
    assert sorted(report.resized) == [
        'pos_embed from 2x2 to 3x4',
        'relative_position_bias_table from 2x2 to 3x3',
        'relative_position_bias_table from 2x2 to 3x4',
    ]
    assert report.new == []


def test_a_recorded_grid_is_believed(tmp_path, pretrained):
    """2 x 8 patches are as many as 4 x 4. The recorded size decides; without one the grid is a square."""
    path, encoder = pretrained
    report = load_encoder_weights(build(img_size=(16, 64)), path)
    assert report.resized == ['pos_embed from 4x4 to 2x8']
    content = torch.load(path) | dict(meta=dict(bootmae=dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[16, 64])))
    torch.save(content, tmp_path / 'recorded.pth')
    model = build(img_size=(16, 64))
    assert load_encoder_weights(model, tmp_path / 'recorded.pth').resized == []
    assert torch.equal(model.pos_embed, encoder['pos_embed'])
    model = build(img_size=(32, 24))
    assert load_encoder_weights(model, tmp_path / 'recorded.pth').resized == ['pos_embed from 2x8 to 4x3']
    assert torch.equal(model.pos_embed, resize_positions(encoder['pos_embed'], (2, 8), (4, 3)))


def test_a_grid_that_is_not_square_is_refused(tmp_path):
    torch.save({f'backbone.{k}': v for k, v in build(img_size=(32, 24)).state_dict().items()}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='position embedding has 12 patches, no square grid, and the model has .4, 4.'):
        load_encoder_weights(build(), tmp_path / 'a.pth')
    state = {f'backbone.{k}': v[1:] if k.endswith(TABLE) else v for k, v in build(**NEW).state_dict().items()}
    torch.save(state, tmp_path / 'b.pth')
    with pytest.raises(ValueError, match='bias table has 51 rows, no square grid, and the model has .4, 4.'):
        load_encoder_weights(build(**NEW), tmp_path / 'b.pth')


# The authors' segmentation files


def test_authors_segmentation_file_is_known(authors):
    encoder = find_encoder(torch.load(authors()))
    assert encoder.kind == "authors' BootMAE segmentation"
    assert encoder.mean == encoder.std == (127.5, 127.5, 127.5)
    assert encoder.depth == 4


def test_authors_segmentation_file_loads_whole(authors):
    path = authors()
    model = build(img_size=32, patch_size=16, **TAPS, **NEW)
    report = load_encoder_weights(model, path)
    assert (report.new, report.unused, report.resized) == ([], [], [])
    assert report.loaded == len(model.state_dict())
    stored = torch.load(path)['state_dict']
    assert torch.equal(model.pyramid.up4[1].running_var, stored['backbone.fpn1.1.running_var'])


def test_its_pyramid_is_not_used_by_another(authors):
    model = build(img_size=32, patch_size=16, **NEW, pyramid=dict(type='SimplePyramid', out_channels=8))
    report = load_encoder_weights(model, authors())
    assert report.unused == ['pyramid.up2', 'pyramid.up4']
    assert families(report.new) == ['pyramid.*']


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'backbone.blocks.0.attn.relative_position_index': torch.zeros(5, 5, dtype=torch.long)},
            'orders relative positions differently',
        ),
        ({f'backbone.blocks.0.{TABLE}': torch.zeros(9, 4)}, 'does not fit its table'),
        ({'backbone.rel_pos_bias.table': torch.zeros(3)}, r"unknown weights \['backbone.rel_pos_bias.table'\]"),
        ({'backbone.blocks.3.gamma_2': None}, '1 missing: blocks.3.gamma_2'),
    ],
)
def test_a_strange_segmentation_file_is_refused(authors, changes, message):
    path = authors(changes)
    with pytest.raises(ValueError, match=rf'{path}.* was not loaded.*{message}'):
        load_encoder_weights(build(img_size=32, patch_size=16, **TAPS, **NEW), path)


def test_a_whole_segmentation_file_maps_to_mmseg(authors):
    stored = torch.load(authors())['state_dict']
    state = from_authors_segmentation(stored)
    assert len(state) == len(stored) - 4, 'the four indices'
    assert {
        'decode_head.conv_seg.weight',
        'auxiliary_head.conv_seg.bias',
        'backbone.pyramid.up4.3.weight',
        f'backbone.blocks.3.{TABLE}',
        'backbone.blocks.0.gamma_1',
    } <= set(state)
    assert state['backbone.pyramid.up2.0.bias'] is stored['backbone.fpn2.0.bias']


# Through init_weights of the libraries


def segmentor(**backbone):
    from mmseg.registry import MODELS

    head = dict(type='FCNHead', in_channels=24, in_index=2, channels=8, num_convs=1, num_classes=3)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            decode_head=head,
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(type='TransferViT', arch=ARCH, img_size=48, patch_size=8, **TAPS, **NEW) | backbone,
        )
    )


def detector(**backbone):
    from mmdet.registry import MODELS

    anchors = dict(type='AnchorGenerator', strides=[1, 2, 4, 8], ratios=[1.0], scales=[1])
    pyramid = dict(type='SimplePyramid', out_channels=8)
    return MODELS.build(
        dict(
            type='SingleStageDetector',
            backbone=dict(type='TransferViT', arch=ARCH, img_size=48, patch_size=8, pyramid=pyramid, **NEW) | backbone,
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


def classifier(**backbone):
    from mmpretrain.registry import MODELS

    return MODELS.build(
        dict(
            type='ImageClassifier',
            neck=dict(type='GlobalAveragePooling'),
            backbone=dict(type='TransferViT', arch=ARCH, img_size=48, patch_size=8, **NEW) | backbone,
            head=dict(type='LinearClsHead', num_classes=3, in_channels=24),
        )
    )


@pytest.mark.parametrize('library, make', [('mmpretrain', classifier), ('mmseg', segmentor), ('mmdet', detector)])
def test_init_weights_loads(pretrained, library, make, scope):
    scope(library)
    path, encoder = pretrained
    model = make(init_cfg=dict(type='EncoderWeights', checkpoint=str(path)))
    for _ in range(2):  # a second call changes nothing
        model.init_weights()
        state = model.backbone.state_dict()
        assert all(
            torch.equal(state[key], value)
            for key, value in encoder.items()
            if not key.startswith(('norm.', 'pos_embed'))
        )
        assert torch.equal(state['pos_embed'], resize_positions(encoder['pos_embed'], (4, 4), (6, 6)))
    assert model.backbone.load_report.resized == ['pos_embed from 4x4 to 6x6']
    assert {float(value) for key in state if 'gamma' in key for value in state[key]} == {1.0}
    assert {float(state[key].abs().max()) for key in state if key.endswith(TABLE)} == {0.0}


def test_a_wrong_file_stops_a_segmentor(pretrained, scope):
    scope('mmseg')
    model = segmentor(
        arch=ARCH | dict(depth=6),
        out_indices=(0, 1, 2, 5),
        init_cfg=dict(type='EncoderWeights', checkpoint=str(pretrained[0])),
    )
    with pytest.raises(ValueError, match="it has 4 blocks, the model's arch has 6"):
        model.init_weights()


def test_init_option_takes_a_downstream_config(pretrained):
    """``--init`` with the config of a segmentor or detector."""
    cfg = ConfigDict(
        model=dict(
            type='EncoderDecoder',
            backbone=dict(type='TransferViT', arch=ARCH, img_size=48, patch_size=8),
            data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
        )
    )
    apply_init(cfg, str(pretrained[0]))
    assert cfg.model.backbone.init_cfg == dict(type='EncoderWeights', checkpoint=str(pretrained[0]), source='online')
    cfg.model.backbone.arch = ARCH | dict(depth=6)
    with pytest.raises(ValueError, match="it has 4 blocks, the model's arch has 6"):
        apply_init(cfg, str(pretrained[0]))
    cfg.model.backbone.arch = ARCH
    cfg.model.data_preprocessor.mean = [123.675, 116.28, 103.53]
    with pytest.raises(ValueError, match='was made with mean'):
        apply_init(cfg, str(pretrained[0]))


def test_starting_weights():
    """The blocks are initialized as in pretraining, the pyramid as torch initializes convolutions."""
    model = build(**TAPS, **NEW)
    before = {name: value.clone() for name, value in model.pyramid.named_parameters()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.pyramid.named_parameters())
    assert 0 < model.cls_token.abs().max() < 1e-4
    bound = (6 / (24 + 96)) ** 0.5
    assert 0.9 * bound < model.blocks[0].mlp.fc1.weight.abs().max() <= bound
