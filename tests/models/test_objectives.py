"""Losses and token weights against plain loops."""

import math

import numpy as np
import pytest
import torch

from bootmae.models.masking import BlockMasking
from bootmae.models.objectives import feature_loss, normalize_patches, pixel_loss, token_weights, weighted_error

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def weights_by_loops(ids_masked, grid):
    rows, columns = grid
    out = torch.zeros(len(ids_masked), rows * columns)
    for b, ids in enumerate(ids_masked.tolist()):
        for i in ids:
            row, column = divmod(i, columns)
            around = [
                (row + dr) * columns + column + dc
                for dr in (-1, 0, 1)
                for dc in (-1, 0, 1)
                if 0 <= row + dr < rows and 0 <= column + dc < columns
            ]
            out[b, i] = 1 + sum(j in ids for j in around) / 9
    return out


def normalized(values, eps):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(variance + eps) for v in values]


def loss_by_loops(prediction, target, weights):
    """Weighted sum of the mean squared errors of the masked patches, divided by their number."""
    total, count = 0.0, 0
    for b in range(len(prediction)):
        for m in range(len(prediction[b])):
            pairs = list(zip(prediction[b][m], target[b][m], strict=True))
            total += weights[b][m] * sum((p - t) ** 2 for p, t in pairs) / len(pairs)
            count += 1
    return total / count


def pixel_loss_by_loops(prediction, patches, weights, channels):
    target = [
        [[value for part in split(patch, channels) for value in normalized(part, 1e-5)] for patch in image]
        for image in patches
    ]
    return loss_by_loops(prediction, target, weights)


def split(patch, channels):
    size = len(patch) // channels
    return [patch[c * size : (c + 1) * size] for c in range(channels)]


def feature_loss_by_loops(prediction, target, weights):
    prediction, target = ([[normalized(values, 1e-6) for values in image] for image in x] for x in (prediction, target))
    return loss_by_loops(prediction, target, weights)


def random_masks(grid, batch=3, seed=0):
    generator, n = torch.Generator().manual_seed(seed), grid[0] * grid[1]
    return torch.stack([torch.randperm(n, generator=generator)[: n * 2 // 3] for _ in range(batch)])


# Token weights


@pytest.mark.parametrize('grid', [(4, 4), (3, 7), (6, 2), (1, 5), (14, 14)])
def test_weights_equal_plain_loops(grid):
    ids = random_masks(grid)
    torch.testing.assert_close(token_weights(ids, grid), weights_by_loops(ids, grid), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'position, masked_neighbors',
    [
        (0, 4),
        (3, 4),
        (12, 4),
        (15, 4),  # corners
        (1, 6),
        (4, 6),
        (7, 6),
        (14, 6),  # edges
        (5, 9),
        (10, 9),
    ],
)
def test_weights_where_everything_is_masked(position, masked_neighbors):
    """The divisor is 9 at the border too."""
    weights = token_weights(torch.arange(16)[None], (4, 4))
    assert weights[0, position] == pytest.approx(1 + masked_neighbors / 9)


def test_weight_of_a_lonely_patch():
    expected = torch.zeros(1, 16)
    expected[0, 5] = 1 + 1 / 9
    torch.testing.assert_close(token_weights(torch.tensor([[5]]), (4, 4)), expected)


def test_weights_of_a_rectangular_grid_by_hand():
    weights = token_weights(torch.tensor([[0, 1, 5]]), (2, 3))  # X X . / . . X
    torch.testing.assert_close(weights, torch.tensor([[1 + 2 / 9, 1 + 3 / 9, 0, 0, 0, 1 + 2 / 9]]))


@pytest.mark.parametrize(
    ('grid', 'masking', 'stated'),
    [((14, 14), {}, 1.8), ((6, 6), dict(num_masked=27, num_block=22), 1.7)],
    ids=['papers', 'demo'],
)
def test_mean_weight_of_a_masked_patch_is_what_the_docs_state(grid, masking, stated):
    """docs/watching.md and docs/faq.md divide losses by it."""
    masker, rng = BlockMasking(grid, **masking), np.random.RandomState(0)
    ids = torch.stack([torch.as_tensor(masker.draw_ids_shuffle(rng))[-masker.num_masked :] for _ in range(500)])
    assert token_weights(ids, grid).sum(1).mean() / masker.num_masked == pytest.approx(stated, abs=0.05)


def test_weighting_off():
    ids = random_masks((4, 4))
    expected = torch.zeros(3, 16).scatter_(1, ids, 1.0)
    assert torch.equal(token_weights(ids, (4, 4), weighted=False), expected)


def test_weights_do_not_depend_on_the_order_of_ids():
    ids = random_masks((4, 4))
    assert torch.equal(token_weights(ids, (4, 4)), token_weights(ids.flip(1), (4, 4)))


# Normalized pixels


def test_normalized_pixels_by_hand():
    patch = torch.tensor([[[0.0, 2.0, 4.0, 6.0, 10.0, 10.0, 10.0, 10.0]]])  # two channels of four pixels
    ours = normalize_patches(patch, channels=2)
    scale = math.sqrt(5 + 1e-5)  # biased variance of 0 2 4 6
    torch.testing.assert_close(
        ours, torch.tensor([[[-3.0, -1.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0]]]) / torch.tensor([scale] * 4 + [1.0] * 4)
    )


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_normalized_pixels_have_unit_channels(channels):
    patches = torch.randn(2, 5, channels * 16, dtype=torch.float64) * 7 + 3
    parts = normalize_patches(patches, channels).unflatten(-1, (channels, 16))
    torch.testing.assert_close(parts.mean(-1), torch.zeros(2, 5, channels, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        parts.var(-1, unbiased=False), torch.ones(2, 5, channels, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_normalized_pixels_forget_scale_and_shift_of_a_channel():
    patches = torch.randn(1, 2, 3, 16, dtype=torch.float64)
    changed = patches * torch.tensor([50.0, 20.0, 70.0])[:, None] + torch.tensor([1.0, -2.0, 3.0])[:, None]
    torch.testing.assert_close(
        normalize_patches(patches.flatten(2)), normalize_patches(changed.flatten(2)), rtol=0, atol=1e-4
    )


# Losses


@pytest.fixture
def case():
    """Predictions, patches, features, targets and weights: 2 images of 3 masked patches."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return dict(
        pixels=draw(2, 3, 12),
        patches=3 * draw(2, 3, 12) + 1,
        features=draw(2, 3, 8) * 2 - 1,
        targets=draw(2, 3, 8) * 5,
        weights=1 + draw(2, 3).abs(),
    )


def test_pixel_loss_equals_plain_loops(case):
    ours = pixel_loss(case['pixels'], case['patches'], case['weights'], channels=3)
    theirs = pixel_loss_by_loops(case['pixels'].tolist(), case['patches'].tolist(), case['weights'].tolist(), 3)
    assert ours.item() == pytest.approx(theirs, rel=1e-12)


def test_feature_loss_equals_plain_loops(case):
    ours = feature_loss(case['features'], case['targets'], case['weights'])
    theirs = feature_loss_by_loops(case['features'].tolist(), case['targets'].tolist(), case['weights'].tolist())
    assert ours.item() == pytest.approx(theirs, rel=1e-12)


def test_channels_matter(case):
    losses = {c: pixel_loss(case['pixels'], case['patches'], case['weights'], c).item() for c in (1, 3, 4)}
    assert len(set(losses.values())) == 3
    for channels, loss in losses.items():
        assert loss == pytest.approx(
            pixel_loss_by_loops(*(case[k].tolist() for k in ('pixels', 'patches', 'weights')), channels), rel=1e-12
        )


def test_error_by_hand():
    prediction = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    target = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    weights = torch.tensor([[1.5, 2.0]])
    assert weighted_error(prediction, target, weights).item() == (1.5 * 1 + 2.0 * 2) / 2


def test_perfect_predictions_cost_nothing(case):
    assert pixel_loss(normalize_patches(case['patches']), case['patches'], case['weights']).item() == 0
    assert feature_loss(case['targets'] * 3 + 1, case['targets'], case['weights']).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('dtype', DTYPES)
def test_sums_in_at_least_float32(case, dtype):
    """Inputs are rounded to ``dtype``, but computed with in float32."""
    small = {key: value.to(dtype) for key, value in case.items() if key != 'weights'}
    exact = {key: value.double() for key, value in small.items()}
    weights = case['weights'].float()
    pairs = zip(
        *(
            (
                pixel_loss(x['pixels'], x['patches'], weights),
                feature_loss(x['features'], x['targets'], weights),
                normalize_patches(x['patches']),
            )
            for x in (small, exact)
        ),
        strict=True,
    )
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for ours, theirs in pairs:
        assert ours.dtype == wanted
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_many_small_errors_are_not_lost(dtype):
    """In half precision a sum of 40,000 ones stops at 256 or 2048, and the square of 300 overflows."""
    ones = torch.ones(4, 10_000, 4, dtype=dtype)
    loss = weighted_error(ones, torch.zeros_like(ones), torch.ones(4, 10_000))
    assert loss.item() == 1.0
    large = 300 * ones[:1, :2]
    assert weighted_error(large, torch.zeros_like(large), torch.ones(1, 2)).item() == 90_000.0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_changes_no_sum(case, dtype):
    half = {key: value.to(dtype) for key, value in case.items() if key != 'weights'}
    weights = case['weights'].float()
    with torch.autocast('cpu', dtype):
        inside = (
            pixel_loss(half['pixels'], half['patches'], weights),
            feature_loss(half['features'], half['targets'], weights),
        )
    outside = (
        pixel_loss(half['pixels'], half['patches'], weights),
        feature_loss(half['features'], half['targets'], weights),
    )
    assert inside == outside
    assert {loss.dtype for loss in inside} == {torch.float32}


def test_gradients_reach_predictions_only_where_wanted(case):
    prediction = case['features'].clone().requires_grad_()
    weights = case['weights'].clone()
    weights[0, 1] = 0
    feature_loss(prediction, case['targets'], weights).backward()
    assert prediction.grad[0, 1].abs().max() == 0
    assert prediction.grad[0, 0].abs().max() > 0
