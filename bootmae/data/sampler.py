"""An order of samples that is the same on any number of processes and can be resumed at any batch."""

from collections import deque
from collections.abc import Iterator, Sized
from itertools import chain, count, islice

import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

from ..text import count_of


@DATA_SAMPLERS.register_module()
class StreamSampler(Sampler):
    """Yield keys ``epoch * len(dataset) + index``, dealt out to the ranks in turn.

    A global batch therefore holds the same samples on any number of processes.

    Args:
        dataset: Data set of N samples.
        shuffle: Draw a new permutation for each epoch from ``seed + epoch``.
        seed: Seed of the run.
        infinite: Continue through all epochs. Otherwise stop at the end of one, see :meth:`set_epoch`.
        drop_last: Leave out the last N mod ranks samples of an epoch, so that all ranks have equally many. Otherwise
            the first samples come twice.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = 0,
        infinite: bool = False,
        drop_last: bool = False,
    ):
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed or 0
        self.infinite, self.drop_last, self.epoch = infinite, drop_last, 0
        self.rank, self.world_size = get_dist_info()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def keys(self, epoch: int) -> torch.Tensor:
        """All keys of an epoch (N,) in their order."""
        size = len(self.dataset)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(size, generator=generator) if self.shuffle else torch.arange(size)
        return order + epoch * size

    def __iter__(self) -> Iterator[int]:
        if self.infinite:
            stream = chain.from_iterable(self.keys(epoch).tolist() for epoch in count())
            return islice(stream, self.rank, None, self.world_size)
        keys, total = self.keys(self.epoch), len(self) * self.world_size
        if total > len(keys):
            keys = keys.repeat(-(-total // len(keys)))
        return iter(keys[self.rank : total : self.world_size].tolist())

    def __len__(self) -> int:
        """Number of samples of this rank in an epoch."""
        size = len(self.dataset)
        return size // self.world_size if self.drop_last else -(-size // self.world_size)


@DATA_SAMPLERS.register_module()
class ResumableBatches(BatchSampler):
    """Batches of a sampler that can start at any batch without loading the previous ones.

    Set ``skip`` to the number of batches to leave out at the beginning of the next iteration.

    Args:
        sampler: A :class:`StreamSampler`.
        batch_size: Samples in a batch of one process.
        drop_last: Leave out an incomplete batch at the end of an epoch.
        accumulation: Batches for each optimizer step. An epoch ends with a whole step, so the last
            ``len mod accumulation`` batches are left out.
        inner: Config of another batch sampler to wrap, such as mmdet's ``AspectRatioBatchSampler``.

    Raises:
        ValueError: If an epoch has no whole step.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        accumulation: int = 1,
        inner: dict | None = None,
    ):
        super().__init__(sampler, batch_size, drop_last)
        build = dict(sampler=sampler, batch_size=batch_size)
        self.inner = (
            BatchSampler(**build, drop_last=drop_last)
            if inner is None
            else DATA_SAMPLERS.build(inner, default_args=build)
        )
        self.accumulation, self.skip = accumulation, 0
        if not sampler.infinite and not len(self):
            raise too_few(len(sampler.dataset), sampler.world_size, batch_size, accumulation, drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        # Nothing runs before the first batch: a loader with workers creates two iterators and uses the second.
        skip, self.skip = self.skip, 0
        batches = iter(self.inner)
        try:
            yield from islice(batches, skip, None if self.sampler.infinite else len(self))
        finally:
            if not self.sampler.infinite:  # mmdet's sampler would keep images for the next epoch
                deque(batches, maxlen=0)

    def __len__(self) -> int:
        return len(self.inner) // self.accumulation * self.accumulation


def too_few(samples: int, processes: int, batch_size: int, accumulation: int, drop_last: bool) -> ValueError:
    """The error for a data set that is too small for a single optimizer step in an epoch."""
    size = 2 ** max((samples // processes).bit_length() - 1, 0)  # a power of 2 that fits
    return ValueError(
        f'{count_of(samples, "training sample is", "training samples are")} too few for one step of '
        f'{count_of(processes, "process", "processes")} x batch_size={batch_size} x accumulation '
        f'{accumulation}{" (the last incomplete batch is dropped)" if drop_last else ""}, so an epoch '
        'would have 0 updates: add images, or lower both train_dataloader.batch_size and '
        f"auto_scale_lr.base_batch_size, the recipe's batch: --cfg-options train_dataloader.batch_size={size} "
        f'auto_scale_lr.base_batch_size={size * processes} (and scale optim_wrapper.optimizer.lr with it)'
    )
