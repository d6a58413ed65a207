"""Every sample comes once per epoch, global batches do not depend on the layout, and any batch can be the first."""

import random
from itertools import islice

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Dataset

from bootmae.data import sampler as sampling
from bootmae.data.sampler import ResumableBatches, StreamSampler


class Length(Dataset):
    """A data set whose samples are their keys; wide and narrow images take turns in threes."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return key

    def get_data_info(self, key):
        wide = key % self.length % 3 > 0
        return dict(width=2 if wide else 1, height=1 if wide else 2)


@pytest.fixture
def layout(monkeypatch):
    """``layout(size, ranks, **kwargs)``: the samplers of all ranks."""

    def make(size, ranks=1, **kwargs):
        samplers = []
        for rank in range(ranks):
            monkeypatch.setattr(sampling, 'get_dist_info', lambda rank=rank: (rank, ranks))
            samplers.append(StreamSampler(Length(size), **kwargs))
        return samplers

    return make


def test_the_order_is_mmengines(layout):
    """Earlier runs stay reproducible."""
    (ours,) = layout(10, seed=3)
    theirs = DefaultSampler(Length(10), seed=3)
    for epoch in (0, 4):
        ours.set_epoch(epoch), theirs.set_epoch(epoch)
        assert list(ours) == [10 * epoch + index for index in theirs]


@pytest.mark.parametrize('ranks', [1, 2, 3, 4])
@pytest.mark.parametrize('drop_last', [True, False])
def test_every_sample_once_an_epoch(layout, ranks, drop_last):
    samplers = layout(11, ranks, drop_last=drop_last)
    for epoch in range(3):
        keys = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == len(sampler)
            keys += list(sampler)
        assert {key // 11 for key in keys} == {epoch}
        indices = [key % 11 for key in keys]
        if drop_last:
            assert len(indices) == len(set(indices)) == 11 // ranks * ranks
        else:
            assert set(indices) == set(range(11))
            assert len(indices) == -(-11 // ranks) * ranks


def test_the_stream_goes_through_all_epochs(layout):
    (sampler,) = layout(5, infinite=True)
    keys = list(islice(sampler, 20))
    assert [key // 5 for key in keys] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert all({key % 5 for key in keys[k : k + 5]} == set(range(5)) for k in range(0, 20, 5))
    assert len({tuple(key % 5 for key in keys[k : k + 5]) for k in range(0, 20, 5)}) > 1
    assert list(islice(layout(5, shuffle=False)[0], 5)) == list(range(5))


@pytest.mark.parametrize('infinite', [True, False])
@pytest.mark.parametrize('ranks, batch, accumulation', [(1, 4, 2), (2, 4, 1), (2, 2, 2), (4, 2, 1), (1, 1, 8)])
def test_any_layout_has_the_same_global_batches(layout, infinite, ranks, batch, accumulation):
    """Batches of 8 of 29 samples, which no layout divides evenly."""

    def steps(ranks, batch, accumulation):
        each = [
            list(islice(ResumableBatches(sampler, batch, True, accumulation), 3 * accumulation))
            for sampler in layout(29, ranks, infinite=infinite, drop_last=True)
        ]
        return [
            sorted(key for batches in each for batch in batches[k : k + accumulation] for key in batch)
            for k in range(0, len(each[0]), accumulation)
        ]

    expected = steps(1, 8, 1)
    assert len(expected) == 3
    assert steps(ranks, batch, accumulation) == expected


@pytest.mark.parametrize('inner', [None, dict(type='mmdet.AspectRatioBatchSampler')])
@pytest.mark.parametrize('infinite', [True, False])
@pytest.mark.parametrize('skip', [0, 1, 4])
def test_resumed_at_any_batch(layout, inner, infinite, skip):
    import mmdet.datasets  # noqa: F401  registers the sampler

    whole = list(islice(ResumableBatches(layout(23, infinite=infinite)[0], 4, inner=inner), 6))
    assert len(whole) == 6
    batches = ResumableBatches(layout(23, infinite=infinite)[0], 4, inner=inner)
    batches.skip = skip
    assert list(islice(batches, 6 - skip)) == whole[skip:]
    if not infinite:
        assert list(batches) == whole  # the next epoch is whole


@pytest.mark.parametrize(('accumulation', 'used'), [(1, 12), (2, 8)])
def test_every_epoch_of_wide_and_narrow_images_is_that_of_a_new_process(layout, accumulation, used):
    """mmdet's sampler keeps images for the next epoch if its iteration stops after the last batch."""
    import mmdet.datasets  # noqa: F401  registers the sampler

    def make():
        inner = dict(type='mmdet.AspectRatioBatchSampler')
        return ResumableBatches(layout(12)[0], 4, accumulation=accumulation, inner=inner)

    batches = make()
    for epoch in range(4):
        fresh = make()
        batches.sampler.set_epoch(epoch), fresh.sampler.set_epoch(epoch)
        found = list(batches)
        assert found == list(fresh)
        keys = [key for batch in found for key in batch]
        assert len(keys) == len({key % 12 for key in keys}) == used
        assert {key // 12 for key in keys} == {epoch}


def test_a_batch_sampler_of_the_user_is_built_once(layout, monkeypatch):
    built = []

    class Shuffled(BatchSampler):
        def __init__(self, sampler, batch_size):
            super().__init__(sampler, batch_size, drop_last=False)
            self.random = random.Random(0)
            built.append(self)

        def __iter__(self):
            return iter(self.random.sample(list(super().__iter__()), len(self)))

    monkeypatch.setitem(DATA_SAMPLERS.module_dict, 'Shuffled', Shuffled)
    batches = ResumableBatches(layout(23)[0], 4, inner=dict(type='Shuffled'))
    plain, draw = list(BatchSampler(layout(23)[0], 4, drop_last=False)), random.Random(0)
    for _ in range(3):
        assert list(batches) == draw.sample(plain, len(plain)), 'its generator goes on'
    assert len(built) == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_in_a_loader(layout, workers):
    batches = ResumableBatches(layout(23)[0], 4)
    loader = DataLoader(batches.sampler.dataset, batch_sampler=batches, num_workers=workers)
    whole = [batch.tolist() for batch in loader]
    batches.skip = 2
    assert [batch.tolist() for batch in loader] == whole[2:]
    assert [batch.tolist() for batch in loader] == whole


def test_skipped_batches_are_not_loaded(layout):
    loaded = []

    class Watched(Length):
        def __getitem__(self, key):
            loaded.append(key)
            return key

    batches = ResumableBatches(StreamSampler(Watched(100), infinite=True), 2)
    batches.skip = 100_000
    first = next(iter(DataLoader(batches.sampler.dataset, batch_sampler=batches)))
    assert loaded == first.tolist()
    assert first[0] // 100 == 2000


def test_an_epoch_ends_with_a_whole_step(layout):
    batches = ResumableBatches(layout(23)[0], 2, accumulation=5)  # 12 batches, the last incomplete
    assert len(batches) == len(list(batches)) == 10
    assert len(ResumableBatches(layout(23)[0], 2)) == 12
    assert len(ResumableBatches(layout(23)[0], 2, drop_last=True)) == 11


def test_too_few_samples(layout):
    with pytest.raises(
        ValueError, match='7 training samples are too few for one step of 1 process x batch_size=4 x accumulation 2'
    ):
        ResumableBatches(layout(7)[0], 4, drop_last=True, accumulation=2)
    with pytest.raises(ValueError, match='the last incomplete batch is dropped'):
        ResumableBatches(layout(7)[0], 8, drop_last=True)
    assert len(ResumableBatches(layout(7)[0], 8)) == 1
