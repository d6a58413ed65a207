"""The order of samples: the same on any number of processes, and resumed at any batch."""

from collections.abc import Iterator, Sized
from itertools import chain, count, islice

import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler


@DATA_SAMPLERS.register_module()
class StreamSampler(Sampler):
    """Keys ``epoch * len(dataset) + index``: the permutations of all epochs, dealt out to the ranks one by one.

    A global batch so holds the same samples on any number of processes.

    Args:
        dataset: of N samples.
        shuffle: draw a new permutation for each epoch, from ``seed + epoch``.
        seed: of the run.
        infinite: go on through all epochs; otherwise stop at the end of one (:meth:`set_epoch`).
        drop_last: leave out the last N mod ranks samples of an epoch, so that every rank has as many; otherwise the
            first ones are given twice.
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
        """All keys of an epoch (N,), in order."""
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
        """Samples of this rank in an epoch."""
        size = len(self.dataset)
        return size // self.world_size if self.drop_last else -(-size // self.world_size)


@DATA_SAMPLERS.register_module()
class ResumableBatches(BatchSampler):
    """Batches of a sampler, from any batch on, without loading what comes before.

    Args:
        sampler: a :class:`StreamSampler`.
        batch_size: samples of one process.
        drop_last: leave out an incomplete batch at the end of an epoch.
        accumulation: batches to an optimizer step. An epoch ends with a whole step: the last
            ``len mod accumulation`` batches are left out.
        inner: config of another batch sampler to take the batches of, such as mmdet's ``AspectRatioBatchSampler``.

    Set ``skip`` to the number of batches to leave out at the beginning of the next iteration.

    Raises:
        ValueError: if an epoch has no whole step.
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
            raise ValueError(
                f'{len(sampler.dataset)} training samples are too few for one step of '
                f'{sampler.world_size} processes x batch_size={batch_size} x accumulation {accumulation}'
                f'{" (the last incomplete batch is dropped)" if drop_last else ""}: lower '
                "train_dataloader.batch_size or the recipe's batch, auto_scale_lr.base_batch_size"
            )

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, since a loader with workers asks for two iterators and uses the second.
        skip, self.skip = self.skip, 0
        yield from islice(self.inner, skip, None if self.sampler.infinite else len(self))

    def __len__(self) -> int:
        return len(self.inner) // self.accumulation * self.accumulation
