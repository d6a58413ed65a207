"""Crops and masks follow (seed, epoch, index): not the process, the worker or the history of the run."""
import copy
import gc
import random
import timeit
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, DefaultSampler, RepeatDataset
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from bootmae.data import seeding
from bootmae.data.seeding import PerSampleSeed, SampleSeedHook, find_seedable, sample_seeds, seeded


@pytest.fixture(scope='module', autouse=True)
def light_collections():
    """mmengine collects garbage whenever it builds a dataset: 0.2 s each time with all of torch to look at."""
    gc.freeze()
    yield
    gc.unfreeze()


def draw(info):
    """A pipeline step that uses all three generators: (index, random, numpy, torch)."""
    values = [info['sample_idx'], random.random(), np.random.rand(), torch.rand(()).item()]
    return torch.tensor(values, dtype=torch.float64)


class Numbers(PerSampleSeed, BaseDataset):
    def __init__(self, length=8, pipeline=(draw,), **kwargs):
        self.length = length
        super().__init__(pipeline=list(pipeline), **kwargs)

    def load_data_list(self):
        return [dict(number=i) for i in range(self.length)]

    def get_cat_ids(self, idx):
        return [0]


class Plain(BaseDataset):
    def load_data_list(self):
        return [dict(number=0)]


class Recorder(BaseModel):
    """A model that learns nothing and notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        self.seen.append(torch.stack(list(inputs)))
        return dict(loss=self.weight * 0)

    def train_step(self, data, optim_wrapper):
        return self(data, mode='loss')


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2:], \
        torch.get_rng_state().tolist()


def epochs(loader, dataset, seed=0, count=2):
    """What a loader yields in each epoch: (epochs, samples, 4)."""
    seen = []
    for epoch in range(count):
        dataset.set_epoch(seed, epoch)
        seen.append(torch.cat(list(loader)))
    return torch.stack(seen)


def test_seeds_are_pinned():
    # np.random.SeedSequence((1, 2, 3)).generate_state(3, np.uint64), numpy 2.2: the streams of stored runs hang on it
    assert sample_seeds(1, 2, 3) == (12997252459554536576, 1119972918, 611356723866378786)
    assert len({sample_seeds(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1, 1)]}) == 5


def test_global_generators_come_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.randn(), torch.randn(1)  # leaves half of a pair cached in random and numpy
    before = global_state()
    generator = np.random.get_bit_generator()
    with seeded(0, 0, 0):
        first = random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn(), random.gauss(0, 1)
    assert global_state() == before
    np.random.randn()  # no half pair this time
    before = global_state()
    with seeded(0, 0, 0):
        again = random.random(), np.random.rand(), torch.rand(1).item(), np.random.randn(), random.gauss(0, 1)
    assert global_state() == before
    assert np.random.get_bit_generator() is generator
    assert again == first


def test_blocks_may_be_nested():
    with seeded(1):
        expected = [np.random.rand(), np.random.rand()]
    with seeded(1):
        first = np.random.rand()
        with seeded(2):
            np.random.rand()
        assert [first, np.random.rand()] == expected


def test_global_generators_come_back_after_an_error():
    def fail(info):
        np.random.rand()
        raise RuntimeError('broken transform')

    dataset = Numbers(pipeline=[fail])
    dataset.set_epoch(0, 0)
    before = global_state()
    with pytest.raises(RuntimeError, match='broken transform'):
        dataset[0]
    assert global_state() == before


def test_dataset_leaves_the_global_generators_alone():
    dataset = Numbers()
    dataset.set_epoch(0, 0)
    before = global_state()
    dataset[3]
    assert global_state() == before


def test_without_set_epoch_the_global_generators_are_used():
    dataset = Numbers()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = [random.random(), np.random.rand(), torch.rand(()).item()]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert dataset[0][1:].tolist() == expected


def test_a_sample_follows_seed_epoch_and_index():
    dataset = Numbers()
    values = {}
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        dataset.set_epoch(*key[:2])
        values[key] = tuple(dataset[key[2]][1:].tolist())
    assert len(set(values.values())) == 4
    dataset.set_epoch(0, 1)
    assert tuple(dataset[0][1:].tolist()) == values[0, 1, 0]
    dataset.set_epoch(0, 0)
    assert dataset[-1].tolist() == dataset[7].tolist() == dataset[np.int64(7)].tolist()
    dataset.set_epoch(2**31 - 1, 10**6)
    dataset[0]


@pytest.mark.parametrize('seed, epoch', [(-1, 0), (0, -1)])
def test_negative_seed_is_refused(seed, epoch):
    with pytest.raises(ValueError, match=f'seed={seed}, epoch={epoch}'):
        Numbers().set_epoch(seed, epoch)


def test_persistent_workers_see_the_same_samples_as_the_main_process():
    alone, shared = Numbers(), Numbers()
    expected = epochs(DataLoader(alone, batch_size=2), alone)
    workers = DataLoader(shared, batch_size=2, num_workers=2, persistent_workers=True)
    assert epochs(workers, shared).equal(expected)
    assert expected[0, :, 0].equal(expected[1, :, 0])
    assert (expected[0, :, 1:] != expected[1, :, 1:]).all()
    assert len(expected[..., 1:].unique()) == 2 * 8 * 3


def test_pickling_to_a_worker_keeps_the_seeds_shared():
    dataset = Numbers()
    in_worker = ForkingPickler.loads(ForkingPickler.dumps(dataset))
    dataset.set_epoch(2, 3)
    assert in_worker._seeding.tolist() == [1, 2, 3]


@pytest.mark.slow
def test_spawned_workers_see_the_same_samples():
    alone, shared = Numbers(4), Numbers(4)
    workers = DataLoader(shared, batch_size=4, num_workers=1, persistent_workers=True, multiprocessing_context='spawn')
    assert epochs(workers, shared, seed=3).equal(epochs(DataLoader(alone, batch_size=4), alone, seed=3))


@pytest.mark.parametrize('world_size', [2, 4])
def test_processes_share_one_global_batch(world_size, monkeypatch):
    dataset = Numbers(16)
    dataset.set_epoch(0, 5)

    def global_batches(world_size):
        ranks = []
        for rank in range(world_size):
            monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, world_size))  # noqa: B023
            sampler = DefaultSampler(dataset, shuffle=True, seed=0)
            ranks.append(list(DataLoader(dataset, batch_size=8 // world_size, sampler=sampler)))
        batches = [torch.cat(parts) for parts in zip(*ranks)]
        return [batch[batch[:, 0].argsort()] for batch in batches]

    for one, many in zip(global_batches(1), global_batches(world_size)):
        assert one.equal(many)


class Broken:
    """Gives None for some samples, as a loader that skips corrupt files does."""

    def __init__(self, good):
        self.good = good

    def __call__(self, info):
        return draw(info) if info['sample_idx'] in self.good else None


def test_replacements_are_a_function_of_the_sample():
    alone, shared = (Numbers(32, pipeline=[Broken(set(range(0, 32, 2)))]) for _ in range(2))
    before = global_state()
    expected = epochs(DataLoader(alone, batch_size=4, shuffle=False), alone)
    assert global_state()[:2] == before[:2]  # torch's moves: a DataLoader draws its base seed from it
    workers = DataLoader(shared, batch_size=4, num_workers=2, persistent_workers=True)
    assert epochs(workers, shared).equal(expected)
    assert expected[0, ::2, 0].tolist() == list(range(0, 32, 2))
    replaced = expected[:, 1::2, 0]
    assert (replaced % 2 == 0).all()
    assert len(replaced[0].unique()) > 4
    assert not replaced[0].equal(replaced[1])


def test_replacement_search_never_runs_in_a_circle():
    dataset = Numbers(6, pipeline=[Broken({4})])
    for epoch in range(20):
        dataset.set_epoch(0, epoch)
        assert [int(dataset[i][0]) for i in range(6)] == [4] * 6


def test_search_without_any_good_sample_ends():
    dataset = Numbers(4, pipeline=[Broken(set())], max_refetch=10)
    dataset.set_epoch(0, 0)
    with pytest.raises(Exception, match='Cannot find valid image after 10'):
        dataset[0]


def test_replacement_without_seeds_is_that_of_mmengine():
    dataset = Numbers(4, pipeline=[Broken({2})])
    assert int(dataset[0][0]) == 2


def test_copies_have_seeds_of_their_own():
    dataset = Numbers()
    dataset.set_epoch(1, 1)
    part = dataset.get_subset([2, 3])
    workers = DataLoader(part, batch_size=2, num_workers=1, persistent_workers=True)
    alone = copy.deepcopy(part)
    assert epochs(workers, part, seed=4).equal(epochs(DataLoader(alone, batch_size=2), alone, seed=4))
    assert dataset._seeding.tolist() == [1, 1, 1]


def test_seeding_costs_little():
    def one():
        with seeded(0, 1, 2):
            pass
    assert min(timeit.repeat(one, number=200, repeat=20)) / 200 < 250e-6  # 65 us on the machine it was written on


@pytest.fixture
def scope():
    """A Runner leaves its registry scope behind, and later tests would build from the wrong registry."""
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


def runner(tmp_path, dataset, model, **kwargs):
    settings = dict(
        train_dataloader=dict(dataset=dataset, batch_size=4, num_workers=0, collate_fn=dict(type='pseudo_collate'),
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), train_cfg=dict(by_epoch=True, max_epochs=3),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=None),
        custom_hooks=[dict(type='SampleSeedHook')], randomness=dict(seed=7), work_dir=str(tmp_path),
        experiment_name=f'seeding_{runner.count}', log_level='ERROR', default_scope='mmengine')
    runner.count += 1
    return Runner(model, **{**settings, **kwargs})


runner.count = 0


@pytest.mark.usefixtures('scope')
def test_resumed_run_sees_what_the_uninterrupted_run_saw(tmp_path):
    whole, resumed = Recorder(), Recorder()
    runner(tmp_path / 'whole', Numbers(), whole).train()
    random.random(), np.random.rand(3), torch.rand(5)
    runner(tmp_path / 'resumed', Numbers(), resumed, load_from=str(tmp_path / 'whole/epoch_1.pth'), resume=True,
           randomness=dict(seed=None)).train()
    assert len(whole.seen) == 6
    assert torch.stack(whole.seen[2:]).equal(torch.stack(resumed.seen))
    assert len(torch.stack(whole.seen)[..., 1:].unique()) == 3 * 8 * 3


def loop_of(dataset, loop=None):
    train_loop = loop or SimpleNamespace()
    train_loop.dataloader = SimpleNamespace(dataset=dataset, batch_sampler=None)
    return SimpleNamespace(train_loop=train_loop, seed=11, epoch=4)


def test_hook_reaches_datasets_inside_wrappers():
    parts = [Numbers(), Numbers(), Numbers()]
    wrapped = torch.utils.data.ConcatDataset([ConcatDataset(parts[:2]), RepeatDataset(parts[2], times=1)])
    SampleSeedHook().before_train_epoch(loop_of(Subset(wrapped, [0, 1])))
    assert [part._seeding.tolist() for part in parts] == [[1, 11, 4]] * 3


def test_hook_gives_all_ranks_the_seed_of_rank_0(monkeypatch):
    monkeypatch.setattr(seeding, 'broadcast', lambda tensor, src: tensor.fill_(5))
    dataset = Numbers()
    SampleSeedHook().before_train_epoch(loop_of(dataset))
    assert dataset._seeding.tolist() == [1, 5, 4]


@pytest.mark.parametrize('wrap', [lambda d: RepeatDataset(d, times=3),
                                  lambda d: Subset(ClassBalancedDataset(d, 0.5), [0])])
def test_hook_refuses_repeats_within_an_epoch(wrap):
    with pytest.raises(ValueError, match=r'around Numbers repeats samples within an epoch.*Train more epochs'):
        SampleSeedHook().before_train(loop_of(wrap(Numbers())))


@pytest.mark.usefixtures('scope')
def test_hook_refuses_an_endless_epoch(tmp_path):
    with pytest.raises(ValueError, match=r'needs an epoch-based loop.*max_epochs'):
        runner(tmp_path, Numbers(), Recorder(), train_cfg=dict(by_epoch=False, max_iters=3)).train()


def test_hook_names_a_dataset_without_seeds(monkeypatch):
    messages = []
    monkeypatch.setattr(seeding, 'print_log', lambda message, **kwargs: messages.append(message))
    mixed = ConcatDataset([Numbers(), Plain()])
    SampleSeedHook().before_train(loop_of(mixed))
    assert len(messages) == 1
    assert messages[0].startswith('Plain takes no per-sample seeds')
    assert find_seedable(mixed) == ([mixed.datasets[0]], {'Plain'})
    SampleSeedHook().before_train_epoch(loop_of(Plain()))  # nothing to seed, nothing to fail
