"""Numbers that all ranks agree on without waiting for one another: each step learns the sums of the step before."""

from typing import Any

import torch
import torch.distributed as dist


class AsyncCounters:
    """Sums over all ranks, exchanged in main memory and known one step later.

    The exchange runs on a gloo group of its own beside the training: it never waits for a GPU and cannot mix with the
    collectives of the model. The lag is exactly one call, so all ranks that call in step decide alike in the same step.
    All ranks must create it together. A single process has the same lag.

    Args:
        names: of the numbers.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group = dist.new_group(backend='gloo') if several else None
        self._sums, self._work = torch.zeros(len(names), dtype=torch.int64), None

    def exchange(self, **values: int) -> dict[str, int]:
        """Give this step's numbers; get the sums over all ranks of those given in the call before, at first zeros."""
        before = self.last()
        self._sums = torch.tensor([int(values.get(name, 0)) for name in self.names])
        if self.group is not None:
            self._work = dist.all_reduce(self._sums, group=self.group, async_op=True)
        return before

    def last(self) -> dict[str, int]:
        """Sums of the numbers given last; waits for the other ranks, where :meth:`exchange` would one step later."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return dict(zip(self.names, self._sums.tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Any object of each rank, in the order of ranks; waits."""
        if self.group is None:
            return [value]
        self.last()  # one at a time
        values = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object; waits."""
        return self.gather(value)[0]
