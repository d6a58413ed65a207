"""Asynchronous all-reduce of CPU counters; each call returns the sums of the previous call."""

from typing import Any

import torch
import torch.distributed as dist


class AsyncCounters:
    """Counters that are summed over all ranks once per training step, without waiting.

    Several hooks share one object: each registers a name before training and gives its value once in every step. When
    the last value of a step is there, one all-reduce starts on a gloo group of its own, so it never waits for a GPU and
    cannot mix with the model's collectives. The sums are known exactly one step later, on every rank in the same step.
    A single process has the same lag. All ranks must create the object together.
    """

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend='gloo') if several else None
        self._given: dict[str, int] = {}  # values of the current step
        self._before: dict[str, int] = {}  # sums of the previous step
        self._names: list[str] = []
        self._sums, self._work = torch.zeros(0, dtype=torch.int64), None

    def register(self, name: str) -> None:
        """Add a counter that starts at zero. Call it before the first step, in the same order on all ranks."""
        if name not in self._names:
            self._names.append(name)
            self._sums = torch.zeros(len(self._names), dtype=torch.int64)

    def exchange(self, name: str, value: int) -> int:
        """Give the value of this step and get the sum over all ranks of the previous step (0 in the first)."""
        if not self._given:
            self._before = self.wait()
        self._given[name] = int(value)
        if len(self._given) == len(self._names):
            self._sums = torch.tensor([self._given[name] for name in self._names])
            self._given = {}
            if self.group is not None:
                self._work = dist.all_reduce(self._sums, group=self.group, async_op=True)
        return self._before[name]

    def wait(self) -> dict[str, int]:
        """Wait for the last all-reduce and return its sums by name."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return dict(zip(self._names, self._sums.tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Return the objects of all ranks, in the order of ranks. Waits for them."""
        if self.group is None:
            return [value]
        self.wait()  # the group does one collective at a time
        values = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the object of rank 0. Waits for it."""
        return self.gather(value)[0]
