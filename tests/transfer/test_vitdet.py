"""ViTDet's backbone: attention on a grid by loops, windows and their padding, and files of detectron2 and MAE."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from bootmae.checkpoints import find_encoder, load_encoder_weights
from bootmae.checkpoints.export import convert
from bootmae.models.layers import Tiling, attend_on_grid, split_heads
from bootmae.models.positions import offset_vectors, resize_offsets

VITDET = dict(
    arch=dict(embed_dims=24, depth=4, num_heads=4),
    class_token=False,
    relative_positions='decomposed',
    window_size=3,
    global_blocks=(1, 3),
    input_size=48,
    trainable_positions=True,
)
PYRAMID = dict(type='SimplePyramid', out_channels=8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def make(make_vit):
    return lambda **changes: make_vit(type='TransferViT', **(VITDET | changes))


# Attention


def test_attention_on_a_grid_by_loops():
    """Queries are scaled in the content term but not in the position terms; all heads share the tables."""
    (h, w), heads, width = (2, 3), 2, 4
    q, k, v = (random(1, h * w, heads * width, seed=seed) for seed in range(3))
    rows, columns = random(h, h, width, seed=3), random(w, w, width, seed=4)
    (qs, ks, vs), expected = (split_heads(x, heads)[0] for x in (q, k, v)), torch.zeros(heads, h * w, width).double()
    for head in range(heads):
        for i in range(h * w):
            logits = torch.stack(
                [
                    qs[head, i] @ ks[head, j] / 2
                    + qs[head, i] @ rows[i // w, j // w]
                    + qs[head, i] @ columns[i % w, j % w]
                    for j in range(h * w)
                ]
            )
            expected[head, i] = logits.softmax(0) @ vs[head]
    assert_close(attend_on_grid(q, k, v, heads, rows, columns), expected.transpose(0, 1).flatten(1).unsqueeze(0))


def test_offsets_by_hand():
    table = torch.tensor([[10.0], [20.0], [30.0], [40.0], [50.0]])  # of -2 .. 2
    assert offset_vectors(table, 3)[..., 0].tolist() == [[30, 20, 10], [40, 30, 20], [50, 40, 30]]
    assert offset_vectors(table, 2)[..., 0].tolist() == [[30, pytest.approx(40 / 3)], [pytest.approx(140 / 3), 30]]
    assert resize_offsets(table, 3) is table
    assert len(resize_offsets(table, 7)) == 13


def test_no_matrix_of_all_pairs_is_needed(make):
    """Forward and backward need only the fused kernel, which does not take a bias."""
    model = make(pyramid=PYRAMID).float().train()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        sum(level.square().mean() for level in model(random(1, 3, 40, 56).float())).backward()
    assert model.blocks[1].attn.rel_pos_h.grad.abs().max() > 0


@pytest.mark.parametrize('grid, side', [((6, 6), 3), ((4, 5), 3), ((2, 7), 4), ((3, 2), 5), ((4, 5), None)])
def test_tiles_are_put_back(grid, side):
    x, tiling = random(2, grid[0] * grid[1], 5), Tiling(grid, side)
    tiles = tiling.split(x)
    rows, columns = tiling.window
    windows = [-(-n // m) for n, m in zip(grid, tiling.window)]
    assert tiles.shape == (2 * windows[0] * windows[1], rows * columns, 5)
    assert torch.equal(tiling.join(tiles), x)
    assert torch.equal(tiles[0, 0], x[0, 0])
    assert (tiles != 0).any(dim=-1).sum() == 2 * grid[0] * grid[1], 'the padding is zero'


def test_windows_see_their_padding_and_no_other_window(make):
    """Padding takes part in a window: its keys are zero and its values are the bias."""
    model = make(global_blocks=(3,), out_indices=(0, 3))
    before = model.maps(random(1, 3, 32, 32))[0]
    with torch.no_grad():
        model.blocks[0].attn.v_bias += 1
    images = random(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 24:, 24:] += 1
    far, near = model.maps(images)[0] - before, (model.maps(images)[0] - model.maps(changed)[0]).abs()
    assert far.abs().amax(dim=1).min() > 1e-3
    assert near[:, :, :3].max() == near[:, :, :, :3].max() == 0
    assert near[:, :, 3, 3].max() > 1e-3


# Training


def test_a_gradient_reaches_everything(make):
    model = make(pyramid=PYRAMID, with_cp=True).train()
    sum((level * random(*level.shape, seed=1)).sum() for level in model(random(2, 3, 40, 24))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9] == []
    assert not any('cls_token' in name for name, _ in model.named_parameters())


def test_checkpointing_gives_identical_gradients(make):
    gradients = []
    for with_cp in (False, True):
        model = make(with_cp=with_cp, drop_path_rate=0.5).train()
        torch.manual_seed(3)
        model(random(2, 3, 32, 32))[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[1][name], grad) for name, grad in gradients[0].items())


def test_bf16_autocast(make):
    model = make().float()
    images = random(1, 3, 32, 32).float()
    exact = model(images)[0]
    with torch.autocast('cpu', torch.bfloat16):
        rough = model(images)[0]
    assert 1e-5 < (rough - exact).norm() / exact.norm() < 0.1


def test_tables_start_as_nothing_and_have_a_head_s_width():
    model = MODELS.build(dict(type='TransferViT', img_size=32, patch_size=8) | VITDET)
    model.init_weights()
    for index, side in enumerate((3, 6, 3, 6)):
        for table in (model.blocks[index].attn.rel_pos_h, model.blocks[index].attn.rel_pos_w):
            assert table.shape == (2 * side - 1, 6)
            assert not table.any()


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(class_token=True), "relative_positions='decomposed' with class_token=True: True is for a model with"),
        (dict(relative_positions=True), 'relative_positions=True with class_token=False'),
        (dict(relative_positions='beit'), r"relative_positions='beit': use one of \(False, True, 'decomposed'\)"),
        (dict(input_size=50), r'image size \(50, 50\) is not a multiple of the patch size'),
        (dict(window_size=None), 'without window_size'),
    ],
)
def test_construction_errors(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


# Files


@pytest.fixture
def detectron2(golden, tmp_path):
    """``detectron2(changes)``: a converted file of a detector, its sizes, and its weights."""

    def write(changes=None):
        with np.load(golden / 'compact_vitdet.npz') as file:
            sizes = json.loads(str(file['meta']))
            state = {
                key.replace('vitdet/', 'backbone.'): torch.from_numpy(file[key])
                for key in file.files
                if key.startswith('vitdet/')
            }
        state |= {'proposal_generator.rpn_head.conv.weight': torch.ones(3), 'pixel_mean': torch.ones(3, 1, 1)}
        state = {key: value for key, value in (state | (changes or {})).items() if value is not None}
        torch.save(dict(model=state), tmp_path / 'detectron2.pth')
        return tmp_path / 'detectron2.pth', sizes, state

    return write


def of_sizes(sizes, **changes):
    windowed = sizes['window_blocks']
    return MODELS.build(
        dict(
            type='TransferViT',
            img_size=sizes['pretrain_img_size'],
            patch_size=sizes['patch_size'],
            class_token=False,
            arch=dict(embed_dims=sizes['embed_dim'], depth=sizes['depth'], num_heads=sizes['num_heads']),
            relative_positions='decomposed',
            input_size=sizes['img_size'],
            window_size=sizes['window_size'],
            global_blocks=[index for index in range(sizes['depth']) if index not in windowed],
            pyramid=dict(type='SimplePyramid', out_channels=sizes['out_channels']),
        )
        | changes
    )


def test_detectron2_file_loads_whole(detectron2):
    path, sizes, stored = detectron2()
    model = of_sizes(sizes)
    report = load_encoder_weights(model, path)
    assert (report.kind, report.new, report.unused, report.resized) == ('detectron2 ViTDet', [], [], [])
    assert report.loaded == report.wanted == len(model.state_dict())
    assert report.loaded == sum(key.startswith('backbone.') for key in stored) + sizes['depth']  # split biases
    assert torch.equal(model.blocks[0].attn.rel_pos_w, stored['backbone.net.blocks.0.attn.rel_pos_w'])
    assert torch.equal(model.pyramid.levels[3][4].norm.bias, stored['backbone.simfp_4.2.norm.bias'])
    encoder = find_encoder(torch.load(path))
    assert encoder.mean == (123.675, 116.28, 103.53)
    assert set(encoder.rest) == {'proposal_generator.rpn_head.conv.weight', 'pixel_mean'}


def test_its_tables_are_resized_and_the_verdict_says_so(detectron2):
    path, sizes, stored = detectron2()
    model = of_sizes(sizes, input_size=(16, 48))  # 2 x 6 patches for 4 x 4
    report = load_encoder_weights(model, path)
    assert report.resized == ['rel_pos_h from 4 to 2', 'rel_pos_w from 4 to 6']
    last = sizes['depth'] - 1
    table = stored[f'backbone.net.blocks.{last}.attn.rel_pos_w']
    assert torch.equal(model.blocks[last].attn.rel_pos_w, resize_offsets(table, 6))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'backbone.net.blocks.0.attn.rel_pos_h': None}, '1 missing: blocks.0.attn.rel_pos_h'),
        ({'backbone.simfp_2.2.weight': None}, '1 missing: pyramid.levels.1.3.weight'),
        ({'backbone.net.blocks.0.attn.rel_pos_h': torch.zeros(5, 3)}, 'of another shape: blocks.0.attn.rel_pos_h'),
        ({'backbone.net.reg_token': torch.zeros(3)}, '1 unexpected: reg_token'),
    ],
)
def test_a_damaged_file_is_refused(detectron2, changes, message):
    path, sizes, _ = detectron2(changes)
    with pytest.raises(ValueError, match=message):
        load_encoder_weights(of_sizes(sizes), path)


def test_a_pretrained_encoder_loads_without_its_class_token(tmp_path, make_bootmae, make):
    """Tables and pyramid are new, and the report lists the class token as not used."""
    pretrained = make_bootmae(backbone=dict(arch=VITDET['arch'])).float()
    torch.save(dict(state_dict=pretrained.state_dict()), tmp_path / 'run.pth')
    model = make(pyramid=PYRAMID)
    report = load_encoder_weights(model, tmp_path / 'run.pth')
    assert report.unused == ['cls_token', 'norm.bias', 'norm.weight']
    assert report.parts == ['relative positions', 'pyramid']
    assert torch.equal(model.pos_embed.float(), pretrained.backbone.pos_embed)


def test_a_detector_s_file_is_no_model_with_class_token(detectron2):
    path, sizes, _ = detectron2()
    with pytest.raises(ValueError, match='missing: cls_token.*unexpected: blocks.0.attn.rel_pos_h'):
        load_encoder_weights(of_sizes(sizes, class_token=True, relative_positions=False), path)


def test_export(detectron2, tmp_path):
    """Whole under our names; another program's plain ViT would compute something else."""
    path = detectron2()[0]
    line = convert(path, 'safetensors', tmp_path / 'whole.safetensors')
    assert '[detectron2 ViTDet, sha256 ' in line
    report = load_encoder_weights(of_sizes(detectron2()[1]), tmp_path / 'whole.safetensors')
    assert (report.new, report.unused) == ([], [])
    with pytest.raises(ValueError, match='timm has no place for blocks.0.attn.rel_pos_h'):
        convert(path, 'timm', tmp_path / 'timm.safetensors')
