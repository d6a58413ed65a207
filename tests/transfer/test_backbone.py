"""The downstream ViT: equal to the plain one, its position biases and windows to loops, in three libraries."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch.testing import assert_close

from bootmae.checkpoints.keys import from_authors_segmentation
from bootmae.engine.optimizers.layer_decay import ViTOptimWrapperConstructor, parameter_table
from bootmae.models.positions import bias_table_size, relative_index, resize_bias_table, resize_positions
from bootmae.transfer.windows import window_groups

DEEP = dict(arch=dict(embed_dims=24, depth=4, num_heads=4))
TAPS = dict(out_indices=(0, 1, 2, 3), pyramid=dict(type='TapPyramid', norm_cfg=dict(type='BN')))
SEGMENTATION = DEEP | TAPS | dict(relative_positions=True, layer_scale=1.0, trainable_positions=True)
WINDOWED = DEEP | dict(relative_positions=True, window_size=3, global_blocks=(1, 3))


def images(height=32, width=32, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


def tokens(count, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 24, generator=generator, dtype=torch.float64)


@pytest.fixture
def make(make_vit):
    """``make(**changes)``: a toy TransferViT in float64, eval mode, all weights random."""

    def make_transfer(**changes):
        return make_vit(type='TransferViT', **changes)

    return make_transfer


# Without its additions it is the plain ViT


def test_equals_the_plain_vit(make, make_vit):
    plain, model = make_vit(out_type='featmap', final_norm=False), make()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(images())[0], plain(images())[0])


def test_taps_are_the_blocks_outputs(make):
    model = make(**DEEP, out_indices=(0, 2, -1))
    x = model.embed(model.patch_embed.patchify(images()), model.pos_embed[:, 1:])
    expected = [x := block(x) for block in model.blocks]
    outputs = model(images())
    assert len(outputs) == 3
    for output, index in zip(outputs, (0, 2, 3)):
        assert torch.equal(output[:, :, 1, 2], expected[index][:, 1 + 1 * 4 + 2])


def test_new_parts_start_as_nothing(make_vit):
    """Bias tables start at zero and layer scales at one: the pretrained function is unchanged."""
    plain = make_vit(**DEEP, out_type='featmap', final_norm=False)
    model = (
        MODELS.build(
            dict(type='TransferViT', **DEEP, img_size=32, patch_size=8, relative_positions=True, layer_scale=1.0)
        )
        .double()
        .eval()
    )
    model.load_state_dict(plain.state_dict(), strict=False)
    assert_close(model(images())[0], plain(images())[0], rtol=1e-12, atol=1e-12)


def test_layer_scale_by_hand(make):
    block, x = make(layer_scale=0.5).blocks[1], tokens(5)
    middle = x + block.gamma_1 * block.attn(block.norm1(x))
    assert_close(block(x), middle + block.gamma_2 * block.mlp(block.norm2(middle)))
    built = MODELS.build(dict(type='TransferViT', **DEEP, img_size=32, patch_size=8, layer_scale=0.5))
    assert {x for name, gamma in built.state_dict().items() if 'gamma' in name for x in gamma.tolist()} == {0.5}


# Any input size


@pytest.mark.parametrize('size', [(32, 48), (16, 64), (72, 8)])
def test_another_input_size(make, size):
    """A model made for this size, with positions and tables interpolated beforehand, gives the same."""
    model, fitted = make(**WINDOWED), make(**WINDOWED, img_size=size)
    grid = tuple(n // 8 for n in size)
    state = model.state_dict()
    state['pos_embed'] = resize_positions(state['pos_embed'], (4, 4), grid)
    for index in WINDOWED['global_blocks']:
        key = f'blocks.{index}.attn.relative_position_bias_table'
        state[key] = resize_bias_table(state[key], (4, 4), grid)
    fitted.load_state_dict(state)
    output = model(images(*size))[0]
    assert output.shape == (2, 24, *grid)
    assert_close(output, fitted(images(*size))[0], rtol=1e-12, atol=1e-12)


def test_rows_and_columns_keep_apart(make):
    model = make(**SEGMENTATION)
    levels, turned = model(images(32, 48)), model(images(32, 48).transpose(2, 3))
    assert [level.shape[2:] for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [level.shape[2:] for level in turned] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert (levels[2] - turned[2].transpose(2, 3)).abs().max() > 0.1


def test_an_odd_size_is_refused_or_padded(make):
    message = r'images of \(30, 41\) pixels are no multiple of the patch size \(8, 8\).*pad_size_divisor.*pad=True'
    with pytest.raises(ValueError, match=message):
        make()(images(30, 41))
    padded = torch.zeros(2, 3, 32, 48, dtype=torch.float64)
    padded[:, :, :30, :41] = images(30, 41)
    assert torch.equal(make(pad=True)(images(30, 41))[0], make()(padded)[0])


# Relative positions


@pytest.mark.parametrize('grid, table', [((2, 3), (2, 3)), ((3, 1), (3, 1)), ((2, 3), (4, 5)), ((1, 1), (1, 1))])
def test_relative_index_by_loops(grid, table):
    index, last = relative_index(grid, table), (2 * table[0] - 1) * (2 * table[1] - 1) + 2
    patches = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    assert index.shape == (1 + len(patches), 1 + len(patches))
    assert index[0].tolist() == [last] + [last - 2] * len(patches)
    assert index[1:, 0].tolist() == [last - 1] * len(patches)
    for q, (row, column) in enumerate(patches):
        for k, (other_row, other_column) in enumerate(patches):
            down, right = row - other_row + table[0] - 1, column - other_column + table[1] - 1
            assert index[1 + q, 1 + k] == down * (2 * table[1] - 1) + right
    assert torch.equal(relative_index(grid, table, class_token=False), index[1:, 1:])
    assert bias_table_size(table) == last + 1


def test_relative_index_of_the_release(golden):
    with np.load(golden / 'compact_segmentation.npz') as file:
        stored = torch.from_numpy(file['backbone/blocks.0.attn.relative_position_index'])
    assert torch.equal(relative_index((2, 2)), stored)


def test_table_interpolation_by_hand():
    """From 2 x 2 (offsets -1, 0, 1) to 3 x 2: new row offsets at -1, -1/2, 0, 1/2, 1 of the old ones."""
    near, far = 19 / 32, -3 / 32  # cubic convolution with a = -0.75, half way
    plane = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    class_rows = torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64)
    expected = torch.stack(
        [
            plane[0],
            (near + far) * plane[0] + near * plane[1] + far * plane[2],  # before the first row the first is repeated
            plane[1],
            far * plane[0] + near * plane[1] + (near + far) * plane[2],
            plane[2],
        ]
    )
    table = torch.cat((plane.flatten(), class_rows)).unsqueeze(1)
    resized = resize_bias_table(torch.cat((table, -table), dim=1), (2, 2), (3, 2))
    assert resized.shape == (18, 2)
    assert_close(resized[:15, 0], expected.flatten(), rtol=1e-12, atol=1e-12)
    assert resized[15:, 0].tolist() == [7, 8, 9], 'the class-token rows stay'
    assert torch.equal(resized[:, 1], -resized[:, 0]), 'each head on its own'
    table = torch.cat((plane.T.flatten(), class_rows)).unsqueeze(1)
    turned = resize_bias_table(table, (2, 2), (2, 3))[:15].view(3, 5)
    assert_close(turned.T, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('old, new', [((4, 4), (8, 8)), ((4, 4), (3, 5)), ((2, 6), (6, 2)), ((1, 3), (2, 2))])
def test_table_interpolation_keeps_center_corners_and_constants(old, new):
    table = torch.randn(bias_table_size(old), 3, dtype=torch.float64)
    table[:, 2] = 1.5
    resized = resize_bias_table(table, old, new)
    before, after = (x[:-3, 0].view(2 * r - 1, 2 * c - 1) for x, (r, c) in ((table, old), (resized, new)))
    assert_close(after[new[0] - 1, new[1] - 1], before[old[0] - 1, old[1] - 1])
    assert_close(after[[0, 0, -1, -1], [0, -1, 0, -1]], before[[0, 0, -1, -1], [0, -1, 0, -1]])
    assert_close(resized[:, 2], torch.full((bias_table_size(new),), 1.5, dtype=torch.float64))
    assert resize_bias_table(table, old, old) is table


# Attention against loops


def attention_by_loops(attn, x, neighbors, bias):
    """(T, D) -> (T, D): token q attends to ``neighbors(q)``, with ``bias(q, k, head)`` on its logits."""
    width = len(attn.q_bias) // attn.num_heads
    q, k, v = (x @ attn.qkv.weight.T).chunk(3, dim=1)
    q, v = q + attn.q_bias, v + attn.v_bias
    out = torch.zeros_like(q)
    for token in range(len(x)):
        seen = neighbors(token)
        for head in range(attn.num_heads):
            part = slice(head * width, (head + 1) * width)
            logits = torch.stack(
                [q[token, part] @ k[other, part] / math.sqrt(width) + bias(token, other, head) for other in seen]
            )
            out[token, part] = logits.softmax(0) @ v[seen][:, part]
    return out @ attn.proj.weight.T + attn.proj.bias


@torch.no_grad()
def test_full_attention_equals_loops(make):
    model = make(**SEGMENTATION, img_size=(16, 24))
    attn, x = model.blocks[0].attn, tokens(7)
    table = attn.relative_position_bias_table

    def bias(query, key, head):
        if query and key:
            (row, column), (row2, column2) = divmod(query - 1, 3), divmod(key - 1, 3)
            return table[(row - row2 + 1) * 5 + column - column2 + 2, head]
        return table[-2 if query else -3 if key else -1, head]

    output = attn(x, None, model.groups((2, 3), x.device)[0][0])
    for ours, sample in zip(output, x):
        assert_close(ours, attention_by_loops(attn, sample, lambda token: list(range(7)), bias))


@torch.no_grad()
@pytest.mark.parametrize('relative_positions', [False, True])
@pytest.mark.parametrize('grid', [(5, 7), (6, 3), (2, 4), (3, 3), (2, 2)])
def test_window_attention_equals_loops(make, grid, relative_positions):
    """Windows of 3 x 3 from the top left, cut at the edges; the class token sees itself alone."""
    model = make(**WINDOWED | dict(relative_positions=relative_positions))
    attn, x = model.blocks[0].attn, tokens(1 + grid[0] * grid[1])
    table = attn.relative_position_bias_table

    def place(token):
        return divmod(token - 1, grid[1])

    def window(token):
        return token and (place(token)[0] // 3, place(token)[1] // 3)

    def neighbors(token):
        return [other for other in range(x.shape[1]) if window(other) == window(token)]

    def bias(query, key, head):
        if query == 0 or not relative_positions:
            return 0
        (row, column), (row2, column2) = place(query), place(key)
        return table[(row - row2 + 2) * 5 + column - column2 + 2, head]

    groups, order = model.groups(grid, x.device)
    output = attn(x[:, order], None, groups[0])[:, order.argsort()]
    for ours, sample in zip(output, x):
        assert_close(ours, attention_by_loops(attn, sample, neighbors, bias))


def test_groups_hold_each_token_once():
    groups, order = window_groups((5, 7), 3)
    assert [group.shape for group in groups] == [(1, 1), (2, 9), (1, 3), (2, 6), (1, 2)]
    assert order[0] == 0
    assert order[10:19].tolist() == [4, 5, 6, 11, 12, 13, 18, 19, 20]  # the second window
    assert order[-2:].tolist() == [28, 35]
    assert sorted(order.tolist()) == list(range(36))


def test_a_bias_is_contiguous(make):
    """On a GPU the fused kernels refuse any other, and attention would keep all logits."""
    model = make(**DEEP | dict(relative_positions=True))
    bias = model.blocks[0].attn.position_bias(model.groups((4, 4), torch.device('cpu'))[0][0][0])
    assert bias.is_contiguous()


@pytest.mark.parametrize('side', [4, 9])
@pytest.mark.parametrize('relative_positions', [False, True])
def test_a_window_over_the_grid_is_full_attention(make, side, relative_positions):
    """... of the patches alone, with the same offsets in the middle of a larger table."""
    settings = DEEP | dict(relative_positions=relative_positions)
    window, full = make(**settings, window_size=side, global_blocks=(3,)), make(**settings)
    windowed, whole = window.blocks[0].attn, full.blocks[0].attn
    state = windowed.state_dict()
    if relative_positions:
        table = state['relative_position_bias_table']
        middle = table[:-3].view(2 * side - 1, 2 * side - 1, 4)[side - 4 : side + 3, side - 4 : side + 3].flatten(0, 1)
        state['relative_position_bias_table'] = torch.cat((middle, table[-3:]))
    whole.load_state_dict(state)
    x = tokens(17)
    among_patches = full.groups((4, 4), x.device)[0][0]
    if relative_positions:
        among_patches[0].bias_index = among_patches[0].bias_index[1:, 1:]
    groups, order = window.groups((4, 4), x.device)
    output = windowed(x[:, order], None, groups[0])[:, order.argsort()]
    assert_close(output[:, 1:], whole(x[:, 1:], None, among_patches))


def test_global_blocks(make):
    twelve = dict(arch=dict(embed_dims=24, depth=12, num_heads=4))
    assert make(**twelve, window_size=2).windowed == [True, True, False] * 4, 'blocks 2, 5, 8, 11 as in ViTDet'
    assert make(**DEEP, window_size=2, global_blocks=(0, -1)).windowed == [False, True, True, False]
    assert make(**DEEP).windowed == [False] * 4


def test_windows_see_one_another_through_global_blocks_alone(make):
    """A patch changed in one window reaches the others after the first global block, not before."""
    model = make(**DEEP, window_size=2, global_blocks=(2, 3), out_indices=(0, 1, 2, 3))
    changed = images()
    changed[:, :, :8, :8] += 1
    differences = [(a - b).abs() for a, b in zip(model(images()), model(changed))]
    for difference in differences[:2]:
        assert difference[:, :, :2, :2].max() > 0.01
        assert difference[:, :, 2:].max() == difference[:, :, :, 2:].max() == 0
    assert differences[2][:, :, 2:, 2:].amax(dim=1).min() > 1e-4


# Training


@pytest.mark.parametrize(
    'settings',
    [
        SEGMENTATION,
        WINDOWED | dict(global_blocks=(1,), trainable_positions=True),
        WINDOWED | dict(pyramid=dict(type='SimplePyramid', out_channels=8), layer_scale=1.0, with_cp=True),
    ],
)
def test_a_gradient_reaches_everything(make, settings):
    model = make(**settings).train()
    generator = torch.Generator().manual_seed(1)
    sum((level * torch.randn(level.shape, generator=generator)).sum() for level in model(images(40, 24))).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert ('pos_embed' in trained) is settings.get('trainable_positions', False)
    assert [name for name, grad in trained.items() if grad is None] == []
    before_a_norm = {'pyramid.up4.0.bias'}  # batch normalization takes it away
    assert {name for name, grad in trained.items() if grad.abs().max() < 1e-9} <= before_a_norm


@pytest.mark.parametrize('settings', [SEGMENTATION, WINDOWED])
def test_checkpointing_gives_identical_gradients(make, settings):
    gradients = []
    for with_cp in (False, True):
        model = make(**settings, with_cp=with_cp, drop_path_rate=0.5).train()
        torch.manual_seed(3)
        sum(level.square().sum() for level in model(images())).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[1][name], grad) for name, grad in gradients[0].items())


def test_checkpointing_works_blocks_out_again(make):
    model, calls = make(with_cp=True).train(), []
    model.blocks[1].mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    output = model(images())[0].sum()
    assert len(calls) == 1
    output.backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(images())
    assert len(calls) == 3


@pytest.mark.parametrize('stages, first_trained', [(-1, 'cls_token'), (0, 'blocks.0'), (2, 'blocks.2')])
def test_frozen_stages(make, stages, first_trained):
    model = make(**SEGMENTATION, frozen_stages=stages, drop_path_rate=0.1).train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained[0].startswith(first_trained)
    assert ('pos_embed' in trained) is ('patch_embed.proj.weight' in trained) is (stages < 0)
    assert trained[-1].startswith('pyramid.')
    assert [block.training for block in model.blocks] == [index >= stages for index in range(4)]
    assert model.pyramid.training
    assert not any(block.training for block in model.eval().blocks)


def test_positions_are_fixed_unless_asked_for(make):
    assert not make().pos_embed.requires_grad
    assert make(trainable_positions=True).pos_embed.requires_grad


def test_bf16_autocast(make):
    model = make(**WINDOWED).float()
    exact = model(images().float())[0]
    with torch.autocast('cpu', torch.bfloat16):
        rough = model(images().float())[0]
    assert 1e-5 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(out_indices=()), r'out_indices=\(\) must rise within 0..2 and end with the last block, 2: set depth'),
        (dict(out_indices=(0, 1)), r'end with the last block, 2'),
        (dict(out_indices=(2, 0)), 'must rise'),
        (dict(out_indices=(0, 0, 2)), 'must rise'),
        (dict(out_indices=(0, 3)), 'must rise within 0..2'),
        (dict(out_indices=(-4, 2)), 'must rise within 0..2'),
        (dict(pyramid=dict(type='TapPyramid')), r'out_indices=\(-1,\) are 1 taps, TapPyramid takes 4'),
        (dict(out_indices=(1, 2), pyramid=dict(type='SimplePyramid')), 'are 2 taps, SimplePyramid takes 1'),
        (dict(window_size=0), 'window_size=0: give the side of a window in patches'),
        (dict(window_size=2, global_blocks=()), 'name at least one block of 0..2'),
        (dict(window_size=2, global_blocks=(3,)), 'name at least one block of 0..2'),
        (dict(global_blocks=(1,)), r'global_blocks=\(1,\) without window_size'),
        (dict(frozen_stages=4), r'frozen_stages=4: use -1'),
        (dict(depth=4), 'depth=4 is not within 1..3'),
        (dict(arch='huge'), "unknown ViT size 'huge'"),
    ],
)
def test_construction_errors(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


# In three libraries


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
    """Half the rate a layer: 2**-5 for the embedding, 2**-(4 - k) for block k, and 1 after the blocks."""
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
    """Its names, through the key map, are our trainable parameters and the statistics of the batch norm."""
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


def test_importing_the_suite_does_not_import_mmseg():
    """It costs a second that only segmentation should pay. (mmdet is imported by mmpretrain's models in any case.)"""
    code = 'import sys, bootmae.registry; print("mmseg" in sys.modules, "bootmae.transfer" in sys.modules)'
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-2:] == ['False', 'True']
