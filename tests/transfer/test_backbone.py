"""The downstream ViT: equal to the plain one, at any input size, and in training."""

import pytest
import torch
from mmengine.registry import MODELS
from torch.testing import assert_close
from transfer_toys import DEEP, SEGMENTATION, WINDOWED, images, tokens

from bootmae.models.positions import resize_bias_table, resize_positions

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
    """Bias tables start at zero and layer scales at one, so the pretrained features are unchanged."""
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
    """A model built for this size, with interpolated positions and tables, gives the same maps."""
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
    message = r'images of \(30, 41\) pixels are not a multiple of the patch size \(8, 8\).*pad_size_divisor.*pad=True'
    with pytest.raises(ValueError, match=message):
        make()(images(30, 41))
    padded = torch.zeros(2, 3, 32, 48, dtype=torch.float64)
    padded[:, :, :30, :41] = images(30, 41)
    assert torch.equal(make(pad=True)(images(30, 41))[0], make()(padded)[0])


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
        (dict(pyramid=dict(type='TapPyramid')), r'out_indices=\(-1,\) are 1 tap, TapPyramid takes 4'),
        (dict(out_indices=(1, 2), pyramid=dict(type='SimplePyramid')), 'are 2 taps, SimplePyramid takes 1'),
        (dict(window_size=0), 'window_size=0: use the side of a window in patches'),
        (dict(window_size=2, global_blocks=()), 'name at least one block of 0..2'),
        (dict(window_size=2, global_blocks=(3,)), 'name at least one block of 0..2'),
        (dict(global_blocks=(1,)), r'global_blocks=\(1,\) without window_size'),
        (dict(frozen_stages=4), r'frozen_stages=4: use -1'),
        (dict(depth=4), 'depth=4: .* has 3 blocks, use 1..3'),
        (dict(arch='huge'), "unknown ViT size 'huge'"),
    ],
)
def test_construction_errors(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
