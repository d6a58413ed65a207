"""Augmentation and masks that depend on (seed, epoch, sample index) and on nothing else.

With ordinary worker seeding, the crop of an image depends on which process and which worker happens to load
it, and on how many samples that worker has loaded before. A run on 2 GPUs then differs from a run on 1, and a
resumed run differs from an uninterrupted one. Here every sample starts from its own seed instead.
"""
import logging
import random
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import get_worker_info

# Put in the place of numpy's own global generator while a pipeline runs; reseeded for every sample.
_SAMPLE_BITS = np.random.MT19937(0)


def sample_seeds(*key: int) -> tuple[int, int, int]:
    """Mix non-negative integers into seeds for ``random``, ``numpy.random`` and ``torch``.

    ``numpy.random.seed`` takes 32 bits, so some of 10^9 visits share numpy's stream. That does no harm.
    """
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(key).generate_state(3, np.uint64).tolist()
    return python_seed, numpy_seed >> 32, torch_seed >> 1


def seed_generators(*key: int):
    """Seed the three global CPU generators from ``key`` (16 us).

    ``torch.manual_seed`` would take 120 us and reseed the GPUs; the pipeline needs torch's CPU generator only.
    """
    python_seed, numpy_seed, torch_seed = sample_seeds(*key)
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(torch_seed)


@contextmanager
def seeded(*key: int):
    """Seed the three global CPU generators from ``key`` for the block, then put them back as they were (65 us).

    Without workers the pipeline shares its process with the model, whose drop path and masks must not notice.
    Half of the time goes into numpy's state. Writing it back would add another half, so its generator is exchanged
    for the block instead (the functions of ``numpy.random`` follow) and its state is needed only inside another
    such block, or if it holds the second of a pair of Gaussians, which the exchange drops.
    """
    python_state = random.getstate()
    torch_state = torch.default_generator.get_state()
    numpy_state = np.random.get_state(legacy=False)
    numpy_bits = np.random.get_bit_generator()
    np.random.set_bit_generator(_SAMPLE_BITS)
    try:
        seed_generators(*key)
        yield
    finally:
        random.setstate(python_state)
        torch.default_generator.set_state(torch_state)
        np.random.set_bit_generator(numpy_bits)
        if numpy_state['has_gauss'] or numpy_bits is _SAMPLE_BITS:
            np.random.set_state(numpy_state)


class PerSampleSeed:
    """Mixin for datasets of mmengine: put it before the dataset class in the list of bases.

    Until :meth:`set_epoch` is called the dataset behaves as it would without the mixin. Afterwards the
    pipeline of sample ``index`` sees generators seeded from (seed, epoch, index). Transforms that keep a
    generator of their own are out of its reach.
    """

    def __init__(self, *args, **kwargs):
        # (active, seed, epoch), shared: workers that outlive an epoch read what the main process writes.
        self._seeding = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._fetching = (0, 0)
        super().__init__(*args, **kwargs)

    def set_epoch(self, seed: int, epoch: int):
        """Choose the seeds of the coming epoch; call it before the loader is iterated.

        Errors: ValueError for a negative seed or epoch.
        """
        if seed < 0 or epoch < 0:
            raise ValueError(f'seed and epoch must not be negative, got seed={seed}, epoch={epoch}')
        if not self._seeding.is_shared():  # a copy of a dataset (get_subset) has lost the shared memory
            self._seeding.share_memory_()
        self._seeding.copy_(torch.tensor([1, seed, epoch]))

    def __getitem__(self, idx: int):
        self._fetching = (idx, 0)
        return super().__getitem__(idx)

    def prepare_data(self, idx: int):
        """Run the pipeline on one sample, under its own seed once :meth:`set_epoch` has been called."""
        active, seed, epoch = self._seeding.tolist()
        if not active:
            return super().prepare_data(idx)
        key = seed, epoch, int(idx) % len(self)
        if get_worker_info() is not None:  # nothing else in a worker draws random numbers
            seed_generators(*key)
            return super().prepare_data(idx)
        with seeded(*key):
            return super().prepare_data(idx)

    def _rand_another(self) -> int:
        """Index to try in place of a sample whose pipeline returned None, a function of that sample's index.

        mmengine draws it from the global numpy state, which would tie it to the worker again.
        """
        active, seed, epoch = self._seeding.tolist()
        if not active:
            return super()._rand_another()
        idx, attempt = self._fetching
        self._fetching = (idx, attempt + 1)
        return sample_seeds(seed, epoch, int(idx) % len(self), attempt + 1)[0] % len(self)


@HOOKS.register_module()
class SampleSeedHook(Hook):
    """Tells the training dataset the seed of the run and the epoch, through ConcatDataset and other wrappers.

    A dataset without :class:`PerSampleSeed` is named in a warning and left alone. The sampler gets the same seed:
    mmengine builds it before the seed of a resumed run is known, and draws it anew under ``diff_rank_seed``.

    Errors: ValueError where the same sample would get the same crops again and again, that is under an
    iteration-based loop (a single endless epoch) and inside RepeatDataset or ClassBalancedDataset.
    """

    def before_train(self, runner):
        seedable, others = find_seedable(runner.train_loop.dataloader.dataset)
        if seedable and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError('SampleSeedHook needs an epoch-based loop: an iteration-based one never starts '
                             'a second epoch, so every visit of an image would repeat the same crop and '
                             'mask. Set train_cfg=dict(by_epoch=True, max_epochs=...) or remove SampleSeedHook.')
        for name in sorted(others):
            print_log(f'{name} takes no per-sample seeds: its crops depend on the number of processes and '
                      'workers, and a resumed run will not repeat them.', logger='current', level=logging.WARNING)

    def before_train_epoch(self, runner):
        # With randomness=dict(diff_rank_seed=True) each rank has its own seed; samples follow that of rank 0.
        seed = torch.tensor(runner.seed)
        broadcast(seed, src=0)
        loader = runner.train_loop.dataloader
        for dataset in find_seedable(loader.dataset)[0]:
            dataset.set_epoch(int(seed), runner.epoch)
        sampler = getattr(loader.batch_sampler, 'sampler', None)  # loader.sampler is a dummy under a batch sampler
        if hasattr(sampler, 'seed'):
            sampler.seed = int(seed)


def find_seedable(dataset) -> tuple[list[PerSampleSeed], set[str]]:
    """Datasets with per-sample seeds inside ``dataset`` and its wrappers, and class names of those without.

    Errors: ValueError when a seedable dataset is inside a wrapper that repeats samples within an epoch.
    """
    if isinstance(dataset, PerSampleSeed):
        return [dataset], set()
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        return [], {type(dataset).__name__}
    found = [find_seedable(child) for child in inner]
    seedable = [leaf for leaves, _ in found for leaf in leaves]
    repeats = isinstance(dataset, RepeatDataset) and dataset.times > 1
    if seedable and (repeats or isinstance(dataset, ClassBalancedDataset)):
        raise ValueError(f'{type(dataset).__name__} around {type(seedable[0]).__name__} repeats samples '
                         'within an epoch, and per-sample seeds would give each repeat the same crop and '
                         'mask. Train more epochs instead, or remove SampleSeedHook.')
    return seedable, set().union(*(names for _, names in found))
