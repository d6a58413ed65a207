"""The encoder: equality with timm's and mmpretrain's, its shortcuts, and its errors."""

import math

import mmcv.cnn.bricks
import pytest
import torch
from mmpretrain.registry import MODELS
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from bootmae.checkpoints.keys import from_mmpretrain, from_timm
from bootmae.models.layers import DropPath
from bootmae.models.positions import resize_positions, sincos_positions
from bootmae.models.vit import ARCHS, PlainViT, patch_grid, resolve_arch

SIZES = dict(img_size=(32, 48), patch_size=8)
ARCH = dict(embed_dims=24, depth=3, num_heads=4)


def images(*shape, seed=0):
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fill(model, state):
    """Load weights under other names. Only weights that the model does not have may remain."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == []
    return unexpected


# Equality with other implementations


def timm_vit(randomize, **kwargs):
    model = VisionTransformer(
        img_size=(32, 48),
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=4,
        qkv_bias=True,
        class_token=True,
        num_classes=0,
        **kwargs,
    )
    torch.nn.init.normal_(randomize(model).pos_embed)
    assert model.blocks[1].attn.qkv.bias.unflatten(0, (3, -1))[1].abs().min() > 0, 'a key bias, which must cancel'
    return model.double().eval()


def test_pooled_equals_timm(make_vit, randomize):
    theirs = timm_vit(randomize, global_pool='avg', fc_norm=True)
    ours = make_vit(**SIZES, out_type='avg_featmap')
    assert fill(ours, from_timm(theirs.state_dict())) == []
    x = images(2, 3, 32, 48)
    assert_close(ours(x)[0], theirs(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('out_type', ['raw', 'cls_token', 'featmap'])
def test_tokens_equal_timm(make_vit, randomize, out_type):
    theirs = timm_vit(randomize, global_pool='token')
    ours = make_vit(**SIZES, out_type=out_type)
    assert fill(ours, from_timm(theirs.state_dict())) == []
    x = images(2, 3, 32, 48)
    tokens = theirs.forward_features(x)  # B, 1 + N, D
    expected = {
        'raw': tokens,
        'cls_token': tokens[:, 0],
        'featmap': tokens[:, 1:].reshape(2, 4, 6, 24).permute(0, 3, 1, 2),
    }[out_type]
    assert_close(ours(x)[0], expected, rtol=1e-6, atol=1e-9)


def mmpretrain_vit(randomize, **kwargs):
    arch = dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=96)
    model = randomize(MODELS.build(dict(arch=arch, img_size=32, patch_size=8) | kwargs))
    torch.nn.init.normal_(model.pos_embed)
    model.double().eval()  # which gives None there
    return model


@pytest.mark.parametrize('out_type', ['raw', 'cls_token', 'featmap'])
def test_equals_mmpretrain_vit(make_vit, randomize, out_type):
    theirs = mmpretrain_vit(randomize, type='VisionTransformer', out_type=out_type)
    ours = make_vit(out_type=out_type)
    assert fill(ours, from_mmpretrain(theirs.state_dict())) == []
    assert_close(ours(images())[0], theirs(images())[0], rtol=1e-6, atol=1e-9)


def test_pooled_equals_mmpretrain_vit(make_vit, randomize):
    theirs = mmpretrain_vit(randomize, type='VisionTransformer', out_type='avg_featmap', final_norm=False)
    ours = make_vit(out_type='avg_featmap')
    assert fill(ours, from_mmpretrain(theirs.state_dict())) == []
    assert_close(ours(images())[0], theirs(images())[0], rtol=1e-6, atol=1e-9)


def test_equals_mmpretrain_maevit(make_vit, randomize):
    theirs = mmpretrain_vit(randomize, type='MAEViT')
    ours = make_vit()
    assert fill(ours, from_mmpretrain(theirs.state_dict())) == []
    assert_close(ours(images())[0], theirs(images(), mask=None)[0], rtol=1e-6, atol=1e-9)


# Output types


def test_output_types_agree(make_vit):
    raw = make_vit()(images())[0]
    assert raw.shape == (2, 17, 24)
    assert torch.equal(make_vit(out_type='cls_token')(images())[0], raw[:, 0])
    featmap = make_vit(out_type='featmap')(images())[0]
    assert featmap.shape == (2, 24, 4, 4)
    assert torch.equal(featmap[:, :, 1, 2], raw[:, 1 + 1 * 4 + 2])


def test_pooled_output_by_hand(make_vit):
    model = make_vit(out_type='avg_featmap')
    tokens = model.embed(model.patch_embed.patchify(images()), model.pos_embed[:, 1:])
    pooled = model.forward_blocks(tokens)[0][:, 1:].mean(dim=1)
    pooled = (pooled - pooled.mean(-1, keepdim=True)) / (pooled.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    assert_close(model(images())[0], pooled * model.fc_norm.weight + model.fc_norm.bias)


def test_final_norm_can_be_left_out(make_vit):
    with_norm, without = make_vit(), make_vit(final_norm=False)
    assert fill(without, with_norm.state_dict()) == ['norm.weight', 'norm.bias']
    assert_close(with_norm.norm(without(images())[0]), with_norm(images())[0])


def test_positions_belong_to_places(make_vit):
    """Permuted patches give other features, unless their positions are permuted too."""
    model = make_vit()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    patches, positions = model.patch_embed.patchify(images()), model.pos_embed[:, 1:]
    plain = model.forward_blocks(model.embed(patches, positions))[0]
    moved = model.forward_blocks(model.embed(patches[:, order], positions[:, order]))[0]
    assert_close(moved[:, 0], plain[:, 0])
    assert_close(moved[:, 1:], plain[:, 1:][:, order])
    lost = model.forward_blocks(model.embed(patches[:, order], positions))[0]
    assert (lost[:, 0] - plain[:, 0]).abs().max() > 1e-3


# Short cuts


@pytest.mark.parametrize('num_queries', [1, 7, 17])
def test_last_queries_alone(make_vit, num_queries):
    model = make_vit()
    tokens = images(2, 17, 24)
    whole, taps = model.forward_blocks(tokens, taps=(1, 0))
    part, part_taps = model.forward_blocks(tokens, taps=(1, 0), num_queries=num_queries)
    assert_close(part, whole[:, -num_queries:], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(taps, part_taps, strict=True))


def test_taps_are_the_blocks_outputs(make_vit):
    model = make_vit()
    x, expected = images(2, 17, 24), []
    tokens = x
    for block in model.blocks:
        tokens = block(tokens)
        expected.append(tokens)
    last, taps = model.forward_blocks(x, taps=(2, 0, 1))
    assert all(torch.equal(tap, expected[index]) for tap, index in zip(taps, (2, 0, 1), strict=True))
    assert torch.equal(last, expected[2])
    assert model.forward_blocks(x)[1] == []


def test_patch_embedding_is_the_convolution(make_vit):
    model = make_vit(img_size=(32, 24), patch_size=(8, 4))
    x = images(2, 3, 32, 24)
    assert_close(model.patch_embed(model.patch_embed.patchify(x)), model.patch_embed.proj(x).flatten(2).transpose(1, 2))


def test_patchify_by_hand(make_vit):
    x = images(2, 3, 32, 24)
    patches = make_vit(img_size=(32, 24), patch_size=(8, 4)).patch_embed.patchify(x)
    assert patches.shape == (2, 24, 96)
    assert torch.equal(patches[1, 2 * 6 + 5], x[1, :, 16:24, 20:24].flatten())


# Positions


@pytest.mark.parametrize('grid, dim', [((3, 5), 8), ((14, 14), 12), ((1, 2), 4)])
def test_sincos_by_formula(grid, dim):
    rows, columns = grid
    ours = sincos_positions(grid, dim)
    assert ours.shape == (1, 1 + rows * columns, dim)
    assert ours.dtype == torch.float32
    assert ours[0, 0].tolist() == [0] * dim
    quarter = dim // 4
    for row in range(rows):
        for column in range(columns):
            omegas = [10000 ** (-k / quarter) for k in range(quarter)]
            expected = [f(place * omega) for place in (row, column) for f in (math.sin, math.cos) for omega in omegas]
            assert ours[0, 1 + row * columns + column].tolist() == pytest.approx(expected, abs=1e-7)


def test_sincos_needs_four_parts():
    with pytest.raises(ValueError, match='multiple of 4, not 10'):
        sincos_positions((2, 2), 10)


def test_release_positions(golden):
    import numpy as np

    with np.load(golden / 'compact_odd_heads.npz') as file:
        for key, dim in (('online/pos_embed', 24), ('online/de_pos_embed', 20)):
            assert_close(sincos_positions((4, 4), dim), torch.from_numpy(file[key]), rtol=0, atol=1e-6)


def test_resize_to_the_same_grid_changes_nothing():
    positions = torch.randn(1, 13, 8)
    assert resize_positions(positions, (3, 4), (3, 4)) is positions


@pytest.mark.parametrize('old, new', [((4, 4), (8, 8)), ((4, 4), (3, 5)), ((2, 6), (6, 2))])
def test_resize_keeps_the_class_token_and_constants(old, new):
    positions = torch.randn(1, 1 + old[0] * old[1], 8)
    positions[:, 1:, 0] = 2.5
    resized = resize_positions(positions, old, new)
    assert resized.shape == (1, 1 + new[0] * new[1], 8)
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert_close(resized[0, 1:, 0], torch.full((new[0] * new[1],), 2.5))


def test_resize_keeps_the_axes_apart():
    """A channel that grows with the row, and is constant along it, stays so."""
    grid = torch.arange(4.0).view(4, 1).expand(4, 4)
    positions = torch.cat((torch.zeros(1), grid.flatten())).view(1, 17, 1)
    resized = resize_positions(positions, (4, 4), (8, 6))[0, 1:, 0].view(8, 6)
    assert_close(resized, resized[:, :1].expand(8, 6))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


def test_resize_is_bicubic_between_centers():
    """For a grid twice as fine, position j is (j + 0.5) / 2 - 0.5 of the old grid. Only cubic kernels overshoot."""
    ramp = torch.arange(8.0).view(1, 8).expand(8, 8)
    peak = torch.zeros(8, 8)
    peak[4, 4] = 1
    positions = torch.cat((torch.zeros(1, 2), torch.stack((ramp, peak), dim=-1).flatten(0, 1))).unsqueeze(0)
    fine_ramp, fine_peak = resize_positions(positions, (8, 8), (16, 16))[0, 1:].T.unflatten(1, (16, 16))
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    assert_close(fine_ramp[5, 4:-4], expected[4:-4], rtol=0, atol=0.06)  # torch's kernel bends a ramp by 0.047
    assert fine_peak[8, 8] > 0.5
    assert fine_peak[8, 11] < -0.01


# Sizes, groups, training


@pytest.mark.parametrize(
    'name, width, depth, heads',
    [('tiny', 192, 12, 3), ('small', 384, 12, 6), ('base', 768, 12, 12), ('large', 1024, 24, 16)],
)
def test_named_sizes(name, width, depth, heads):
    assert set(ARCHS) == {'tiny', 'small', 'base', 'large'}
    assert resolve_arch(name) == dict(embed_dims=width, depth=depth, num_heads=heads, mlp_ratio=4.0)
    with torch.device('meta'):
        model = PlainViT(name)
    assert model.pos_embed.shape == (1, 197, width)
    assert len(model.blocks) == model.depth == depth
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    assert model.blocks[-1].mlp.fc1.weight.shape == (4 * width, width)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='huge'), "unknown ViT size 'huge': use one of tiny, small, base, large"),
        (dict(arch=dict(embed_dims=24, depth=2)), r"missing \['num_heads'\], unknown \[\]"),
        (dict(arch=ARCH | dict(num_layers=2)), r"unknown \['num_layers'\]"),
        (dict(arch=ARCH | dict(num_heads=25)), r'num_heads=25 does not fit a width of 24: choose 1..24'),
        (dict(arch=ARCH | dict(num_heads=0)), r'num_heads=0'),
        (dict(arch=ARCH | dict(embed_dims=26)), 'multiple of 4, not 26'),
        (dict(depth=0), r'depth=0: .* has 3 blocks, use 1..3'),
        (dict(depth=4), r'depth=4: .* has 3 blocks, use 1..3'),
        (dict(img_size=33), r'image size \(33, 33\) is not a multiple of the patch size \(8, 8\)'),
        (dict(img_size=(32, 33)), r'image size \(32, 33\)'),
        (dict(out_type='mean'), "out_type 'mean': use one of raw, featmap, avg_featmap, cls_token"),
    ],
)
def test_construction_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PlainViT(**(dict(arch=ARCH, img_size=32, patch_size=8) | kwargs))


@pytest.mark.parametrize('shape', [(1, 3, 40, 32), (1, 3, 32, 24), (1, 3, 16, 64)])
def test_wrong_image_size(make_vit, shape):
    message = rf'images of \({shape[2]}, {shape[3]}\) pixels given to a ViT built with img_size=\(32, 32\)'
    with pytest.raises(ValueError, match=message):
        make_vit()(images(*shape))


def test_patch_grid():
    assert patch_grid((32, 48), (8, 4)) == (4, 12)


@pytest.mark.parametrize(
    'name, group',
    [
        ('backbone.cls_token', 0),
        ('backbone.pos_embed', 0),
        ('backbone.patch_embed.proj.weight', 0),
        ('backbone.blocks.0.attn.qkv.weight', 1),
        ('backbone.blocks.2.norm1.bias', 3),
        ('backbone.norm.weight', 4),
        ('backbone.fc_norm.bias', 4),
        ('head.fc.weight', 4),
        ('neck.blocks.0.weight', 4),
    ],
)
def test_layer_groups(make_vit, name, group):
    assert make_vit().get_layer_depth(name, 'backbone.') == (group, 5)


def test_layer_groups_of_a_bare_and_of_a_short_encoder(make_vit):
    assert make_vit().get_layer_depth('blocks.1.norm1.weight') == (2, 5)
    assert make_vit(depth=2).get_layer_depth('norm.weight') == (3, 4)


def test_depth_takes_the_first_blocks(make_vit):
    whole, short = make_vit(), make_vit(depth=2)
    left_over = fill(short, whole.state_dict())
    assert left_over
    assert all(name.startswith('blocks.2.') for name in left_over)
    tokens = images(2, 17, 24)
    assert torch.equal(short.forward_blocks(tokens)[0], whole.forward_blocks(tokens, taps=(1,))[1][0])


def test_drop_path_acts_in_training_only(make_vit):
    model, plain = make_vit(drop_path_rate=0.5), make_vit()
    plain.load_state_dict(model.state_dict())
    assert_close(model(images())[0], plain(images())[0], rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    assert (model(images())[0] - plain(images())[0]).abs().max() > 1e-3
    rates = [1 - getattr(block.drop_path, 'keep', 1.0) for block in model.blocks]
    assert rates == [0.0, 0.25, 0.5]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_drop_path_is_that_of_mmcv(dtype):
    x = images(16, 5, 24).to(dtype)
    torch.manual_seed(0)
    expected = mmcv.cnn.bricks.DropPath(0.3)(x)
    torch.manual_seed(0)
    assert torch.equal(DropPath(0.3)(x), expected)
    assert not DropPath(0.3).state_dict()


def test_dropped_branches_are_rescaled(make_vit):
    """Each residual branch of a sample is dropped with probability p, otherwise divided by 1 - p."""
    block = make_vit(drop_path_rate=0.5).blocks[2].train()
    x = images(1, 5, 24).expand(64, -1, -1)
    branch = block.attn(block.norm1(x))
    torch.manual_seed(0)
    middle = x + block.drop_path(branch)
    kept = (middle - x).abs().amax(dim=(1, 2)) > 0
    assert 16 <= kept.sum() <= 48
    assert_close(middle[kept], (x + 2 * branch)[kept])


def test_frozen_stays_in_eval_mode_without_gradients(make_vit):
    model = make_vit(frozen=True, drop_path_rate=0.5)
    assert model.train() is model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert make_vit().train().training


def test_starting_weights(make_vit):
    model = PlainViT(arch=dict(embed_dims=64, depth=2, num_heads=4), img_size=32, patch_size=8)
    model.init_weights()
    attn = model.blocks[0].attn
    for weight, fan in (
        (attn.qkv.weight, 128),
        (attn.proj.weight, 128),
        (model.blocks[1].mlp.fc1.weight, 320),
        (model.patch_embed.proj.weight, 192 + 64),
    ):
        bound = math.sqrt(6 / fan)
        assert bound * 0.95 < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    zeros = (attn.q_bias, attn.v_bias, attn.proj.bias, model.patch_embed.proj.bias, model.norm.bias)
    assert all(not value.any() for value in zeros)
    assert (model.norm.weight == 1).all()
    assert 0 < model.cls_token.abs().max() < 1e-5
    assert torch.equal(model.pos_embed.data, sincos_positions((4, 4), 64))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ['pos_embed']
