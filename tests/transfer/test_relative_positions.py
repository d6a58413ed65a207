"""Relative positions and windows of the downstream ViT, compared with loops."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transfer_toys import DEEP, SEGMENTATION, WINDOWED, images, tokens

from bootmae.models.positions import bias_table_size, relative_index, resize_bias_table
from bootmae.transfer.windows import window_groups

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
    """Windows of 3 x 3 from the top left are cut at the edges, and the class token attends only to itself."""
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
    """Fused GPU kernels need a contiguous bias; without them attention keeps all logits."""
    model = make(**DEEP | dict(relative_positions=True))
    bias = model.blocks[0].attn.position_bias(model.groups((4, 4), torch.device('cpu'))[0][0][0])
    assert bias.is_contiguous()


@pytest.mark.parametrize('side', [4, 9])
@pytest.mark.parametrize('relative_positions', [False, True])
def test_a_window_over_the_grid_is_full_attention(make, side, relative_positions):
    """A window as large as the grid gives full attention of the patches, with the middle of a larger table."""
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
