"""Block-wise masks: counts and properties over many seeds, and the statistics of the authors' generator."""

import json
import math

import numpy as np
import pytest

from bootmae.data.masks import DrawMask
from bootmae.models import masking
from bootmae.models.masking import BlockMasking

GRIDS = [(14, 14), (8, 8), (7, 9), (4, 16), (12, 5), (24, 24), (3, 3), (2, 2)]


class Recording(BlockMasking):
    """Keeps the block masks that ``ids_shuffle`` is drawn from."""

    def draw_blocks(self, rng):
        mask = super().draw_blocks(rng)
        self.__dict__.setdefault('drawn', []).append(mask.copy())
        return mask


def draw_many(masker, number, seed=0):
    """Block masks and final masks, (number, rows, columns) each, and the number of block-masked visible patches.

    Each ``ids_shuffle`` must be a permutation.
    """
    recorder = Recording(**{name: getattr(masker, name) for name in masker.__dataclass_fields__})
    rng, final = np.random.RandomState(seed), np.zeros((number, masker.num_patches), dtype=bool)
    ids_shuffle = np.stack([recorder.draw_ids_shuffle(rng) for _ in range(number)])
    assert ids_shuffle.dtype == np.int64
    assert (np.sort(ids_shuffle) == np.arange(masker.num_patches)).all()
    np.put_along_axis(final, ids_shuffle[:, masker.num_visible :], True, axis=1)
    block, final = np.array(recorder.drawn), final.reshape(-1, *masker.grid)
    return block, final, (block & ~final).sum(axis=(1, 2))


# Counts


def test_defaults_are_the_paper_s():
    assert BlockMasking((14, 14)) == BlockMasking(
        (14, 14), num_masked=147, num_block=120, block_area=(16.0, 60.0), min_aspect=0.3, max_roll=3
    )
    masker = BlockMasking((14, 14))
    assert (masker.num_patches, masker.num_visible) == (196, 49)


def test_counts_and_roll_over_many_masks():
    number = 2000
    block, final, lost = draw_many(BlockMasking((14, 14)), number)
    assert set(block.sum(axis=(1, 2))) == {120}
    assert set(final.sum(axis=(1, 2))) == {147}
    rolls = np.bincount(lost)
    assert len(rolls) == 4, 'the roll makes at most three block-masked patches visible'
    assert np.abs(rolls - number / 4).max() < 5 * math.sqrt(number * 0.25 * 0.75), 'the roll is uniform'


@pytest.mark.parametrize('max_roll', [0, 1, 5])
def test_max_roll(max_roll):
    lost = draw_many(BlockMasking((14, 14), max_roll=max_roll), 300)[2]
    assert set(lost) == set(range(max_roll + 1))


@pytest.mark.parametrize('grid', GRIDS)
def test_other_grids(grid):
    masker = BlockMasking(grid)
    n = grid[0] * grid[1]
    assert masker.num_masked == round(0.75 * n)
    assert masker.num_block == round(120 / 196 * n)
    block, final, lost = draw_many(masker, 50)
    assert block.shape == final.shape == (50, *grid)
    assert set(block.sum(axis=(1, 2))) == {masker.num_block}
    assert set(final.sum(axis=(1, 2))) == {masker.num_masked}
    assert lost.max() <= 3


def test_without_blocks_each_patch_is_masked_as_often_as_any():
    masker, rng = BlockMasking((8, 8), num_masked=48, num_block=0), np.random.RandomState(0)
    ids_shuffle = np.stack([masker.draw_ids_shuffle(rng) for _ in range(2000)])
    assert not masker.draw_blocks(rng).any()
    masked = np.zeros((2000, 64))
    np.put_along_axis(masked, ids_shuffle[:, 16:], 1, axis=1)
    np.testing.assert_allclose(masked.mean(0), 0.75, atol=0.04)  # 4 standard deviations
    together = (masked[:, :-1] * masked[:, 1:]).mean()  # neighbors: no more often than any two patches
    assert together == pytest.approx(48 / 64 * 47 / 63, abs=0.005)


@pytest.mark.parametrize('num_masked, num_block', [(1, 1), (195, 195), (195, 1), (120, 120), (147, 140)])
def test_extreme_counts(num_masked, num_block):
    masker = BlockMasking((14, 14), num_masked=num_masked, num_block=num_block, max_roll=0)
    block, final, lost = draw_many(masker, 20)
    assert set(block.sum(axis=(1, 2))) == {num_block}
    assert set(final.sum(axis=(1, 2))) == {num_masked}
    assert set(lost) == {0}


# Determinism


def test_same_seed_same_order():
    masker = BlockMasking((14, 14))
    draw = [masker.draw_ids_shuffle(np.random.RandomState(seed)).tolist() for seed in (3, 3, 4)]
    assert draw[0] == draw[1]
    assert draw[0] != draw[2]


def test_consecutive_draws_differ():
    masker, rng = BlockMasking((14, 14)), np.random.RandomState(0)
    assert len({tuple(masker.draw_ids_shuffle(rng)) for _ in range(100)}) == 100


def test_global_generator_is_the_default():
    masker = BlockMasking((6, 6))
    np.random.seed(5)
    ours = masker.draw_ids_shuffle().tolist()
    assert ours == masker.draw_ids_shuffle(np.random.RandomState(5)).tolist()


def test_transform_draws_the_same_masks():
    transform = DrawMask(img_size=(64, 32), patch_size=8, num_masked=20)
    assert transform.masking == BlockMasking((8, 4), num_masked=20)
    np.random.seed(5)
    out = transform(dict(img='kept'))
    assert out['img'] == 'kept'
    assert out['ids_shuffle'].tolist() == transform.masking.draw_ids_shuffle(np.random.RandomState(5)).tolist()


def ids_shuffle_by_arrays(masker, rng):
    """``ids_shuffle`` by the written rule, with numpy arrays in place of bits."""
    (rows, columns), mask = masker.grid, np.zeros(masker.grid, dtype=bool)
    while mask.sum() < masker.num_block:
        limit = min(masker.block_area[1], masker.num_block - mask.sum())
        u_area, u_aspect, u_top, u_left = rng.random_sample(4)
        area = masker.block_area[0] + u_area * (limit - masker.block_area[0])
        aspect = math.exp(math.log(masker.min_aspect) * (1 - 2 * u_aspect))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < rows and w < columns:
            top, left = int(u_top * (rows - h + 1)), int(u_left * (columns - w + 1))
            block = np.zeros_like(mask)
            block[top : top + h, left : left + w] = True
            if 0 < (block & ~mask).sum() <= limit:
                mask |= block
    order = np.argsort(mask.reshape(-1) - rng.random_sample(mask.size), kind='stable')
    return np.roll(order, rng.randint(0, masker.max_roll + 1))


@pytest.mark.parametrize('grid', GRIDS)
def test_ids_shuffle_keeps_every_number(grid):
    """Masks of stored runs depend on every draw, and so does what a sample draws after its mask."""
    for changes in ({}, dict(max_roll=grid[0] * grid[1])):
        masker, fast, slow = BlockMasking(grid, **changes), np.random.RandomState(3), np.random.RandomState(3)
        for _ in range(20):
            assert masker.draw_ids_shuffle(fast).tolist() == ids_shuffle_by_arrays(masker, slow).tolist()
        assert fast.random_sample() == slow.random_sample()


# Blocks


class Fixed:
    """A generator that gives (u_area, u_aspect, u_top, u_left) in turn."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random_sample(self, size):
        assert size == 4
        return np.array(self.draws.pop(0))


def rectangles(*parts):
    mask = np.zeros((14, 14), dtype=bool)
    for top, bottom, left, right in parts:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    'draw, block',
    [
        ((0.0, 0.5, 0.0, 0.0), (0, 4, 0, 4)),  # area 16, aspect 1
        ((1.0, 0.5, 0.0, 0.0), (0, 7, 0, 7)),  # area 49: what is left
        ((0.0, 0.5, 0.999, 0.999), (10, 14, 10, 14)),  # the last place where it fits
        ((0.0, 0.5, 0.5, 0.1), (5, 9, 1, 5)),  # places 5 and 1 of 0..10
        ((0.0, 0.0, 0.0, 0.0), (0, 2, 0, 7)),  # aspect 0.3: sqrt(4.8) x sqrt(53.3)
        ((0.0, 1.0, 0.0, 0.0), (0, 7, 0, 2)),  # aspect 1 / 0.3
        ((22 / 24, 0.75, 0.0, 0.0), (0, 8, 0, 5)),  # area 38, aspect 0.3 ** -0.5: sqrt(69.4) x sqrt(20.8)
    ],
)
def test_one_block(draw, block):
    expected = rectangles(block)
    mask = BlockMasking((14, 14), num_block=int(expected.sum())).draw_blocks(Fixed(draw))
    assert np.array_equal(mask, expected)


def test_a_whole_mask():
    """120 patches: the area is between 16 and the least of 60 and what is left."""
    rng = Fixed(
        (1.0, 0.5, 0.0, 0.0),  # 60: 8 x 8 is too much
        (0.75, 0.5, 0.0, 0.0),  # 16 + 0.75 * (60 - 16) = 49, leaves 71
        (0.75, 0.5, 0.999, 0.999),  # the same, leaves 22
        (1.0, 0.5, 0.0, 0.999),  # 22: 5 x 5 is too much
        (0.0, 0.5, 0.0, 0.999),  # 16, leaves 6
        (1.0, 0.5, 0.999, 0.0),  # 6: 2 x 2, leaves 2
        (1.0, 0.5, 0.5, 0.0),
        (1.0, 0.5, 0.0, 0.6),
    )  # 2: 1 x 1, twice, at places 7 and 8 of 0..13
    mask = BlockMasking((14, 14)).draw_blocks(rng)
    assert rng.draws == []
    assert np.array_equal(
        mask, rectangles((0, 7, 0, 7), (7, 14, 7, 14), (0, 4, 10, 14), (12, 14, 0, 2), (7, 8, 0, 1), (0, 1, 8, 9))
    )


def test_a_block_that_adds_nothing_or_too_much_is_drawn_again():
    corner, far = (0.0, 0.5, 0.0, 0.0), (0.0, 0.5, 0.999, 0.999)
    masker = BlockMasking((14, 14), num_block=18, num_masked=20)
    # 16 patches; again the same: nothing new; 16 more: more than the 2 left; then area 2, a 1 x 1 block, twice
    smaller = (1.0, 0.5, 0.999, 0.999)
    rng = Fixed(corner, corner, far, smaller, (1.0, 0.5, 0.0, 0.999))
    mask = masker.draw_blocks(rng)
    assert rng.draws == []
    assert mask.sum() == 18
    assert mask[:4, :4].all()
    assert mask[13, 13]
    assert mask[0, 13]


def test_a_side_as_long_as_the_grid_is_drawn_again():
    rng = Fixed((0.0, 0.0, 0.0, 0.0), (0.0, 0.5, 0.0, 0.0))
    mask = BlockMasking((14, 7), num_block=16, num_masked=20, block_area=(16, 60)).draw_blocks(rng)
    assert mask[:4, :4].sum() == mask.sum() == 16  # 2 x 7 does not fit, 4 x 4 does


# Statistics


def standard_error(values, rolls, golden):
    """Of the difference between our mean of ``values`` (n, ...) and the release's of 60,000 masks.

    Ours: n independent masks. The release's: 60,000 masks, whose roll was drawn once per 100 of them, so the part of
    the variance that the roll explains is averaged over 600 draws only.
    """
    groups = [values[rolls == roll] for roll in np.unique(rolls)]
    between = np.var([group.mean(axis=0) for group in groups], axis=0)
    within = np.mean([group.var(axis=0) for group in groups], axis=0)
    return np.sqrt((within + between) / len(values) + within / golden['samples'] + between / (golden['samples'] / 100))


def deviations(masker, golden, number, seed=0):
    """Largest difference to the release's numbers, in standard errors, for each statistic."""
    block, final, rolls = draw_many(masker, number, seed)
    visible = ~final
    statistics = {
        'block_prob': block,
        'final_prob': final,
        'right_neighbour_both_masked': (final[:, :, 1:] & final[:, :, :-1]).mean(axis=(1, 2)),  # codespell:ignore
        'down_neighbour_both_masked': (final[:, 1:] & final[:, :-1]).mean(axis=(1, 2)),  # codespell:ignore
        'visible_pair_right': (visible[:, :, 1:] & visible[:, :, :-1]).mean(axis=(1, 2)),
    }
    return {
        name: float(np.abs((values.mean(axis=0) - golden[name]) / standard_error(values, rolls, golden)).max())
        for name, values in statistics.items()
    }


@pytest.fixture
def release(golden):
    return json.loads((golden / 'mask_statistics.json').read_text())


def test_release_counts(release):
    masker = BlockMasking((14, 14))
    assert release['block_count_min'] == release['block_count_max'] == release['block_count_mean'] == masker.num_block
    assert release['final_masked'] == release['final_masked_max'] == masker.num_masked


def test_statistics_equal_the_release(release):
    """395 comparisons at 5 standard errors: by chance one fails for a share of 2e-4 of all seeds; this one is fixed."""
    found = deviations(BlockMasking((14, 14)), release, 20_000)
    assert {name: value for name, value in found.items() if value > 5} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    'change',
    [
        dict(max_roll=0),
        dict(max_roll=6),
        dict(block_area=(10, 60)),
        dict(block_area=(16, 30)),
        dict(min_aspect=0.5),
        dict(num_block=117),
    ],
    ids=str,
)
def test_statistics_notice_a_change(release, change):
    assert max(deviations(BlockMasking((14, 14), **change), release, 8_000).values()) > 5


# Errors


@pytest.mark.parametrize(
    'grid, changes, message',
    [
        ((1, 14), {}, r'at least 2 x 2 patches, not \(1, 14\)'),
        ((14, 14), dict(num_masked=196), r'num_block=120 and num_masked=196 do not fit 196 patches'),
        ((14, 14), dict(num_masked=119), r'num_block=120 and num_masked=119 do not fit'),
        ((14, 14), dict(num_block=0, num_masked=0), r'num_block=0 and num_masked=0'),
        ((14, 14), dict(num_block=-1), r'num_block=-1 and'),
        ((14, 14), dict(block_area=(60, 16)), r'block_area=\(60, 16\)'),
        ((14, 14), dict(block_area=(0, 16)), r'areas must be positive'),
        ((14, 14), dict(min_aspect=0.0), r'min_aspect=0.0'),
        ((14, 14), dict(min_aspect=1.1), r'min_aspect=1.1'),
        ((14, 14), dict(max_roll=-1), r'max_roll=-1 is outside 0..196'),
        ((14, 14), dict(max_roll=197), r'max_roll=197 is outside 0..196'),
    ],
)
def test_errors(grid, changes, message):
    with pytest.raises(ValueError, match=message):
        BlockMasking(grid, **changes)


def test_impossible_blocks_end(monkeypatch):
    monkeypatch.setattr(masking, 'MAX_DRAWS', 200)
    masker = BlockMasking((2, 100))  # the least block, of area 16.3, is at least two high
    with pytest.raises(ValueError, match='no mask found in 200 draws .*make the blocks smaller'):
        masker.draw_ids_shuffle(np.random.RandomState(0))


def test_transform_refuses_an_uneven_image():
    with pytest.raises(ValueError, match=r'image size \(30, 32\) is not a multiple of the patch size \(8, 8\)'):
        DrawMask(img_size=(30, 32), patch_size=8)
