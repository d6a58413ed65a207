"""What the ranks of a run tell one another of their progress, and who is lost.

Nothing of the package is imported here: the launcher, which reads this too, has to start at once.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

BUSY = ('data', 'step')  # phases that are short: the batch is awaited, the step is computed
ORDER = dict(start=0, data=1, step=2)  # within an iteration; others: 3
NONE = '-'  # in place of a beat: nothing heard yet


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself. ``count`` grows with every beat, ``progress`` with every change of phase."""

    rank: int
    host: str
    pid: int
    count: int = 0
    progress: int = 0
    iteration: int = 0
    phase: str = 'start'
    files: list[str] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, int]:
        """How far it is."""
        return self.iteration, ORDER.get(self.phase, 3)

    def __str__(self) -> str:
        files = f', last files {", ".join(self.files)}' if self.files else ''
        return (
            f'rank {self.rank} (host {self.host}, pid {self.pid}, phase {self.phase}, iteration '
            f'{self.iteration}{files})'
        )


def key(rank: int) -> str:
    """Of a rank's beat in the store."""
    return f'bootmae/heartbeat/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}/{rank}'


class Observer:
    """Judges by this process's own clock how long ago the others' beats changed: clocks of hosts are not compared.

    Args:
        world: number of ranks.
        limit: seconds without a beat, or without progress of any rank in a short phase, that are too long.
        patience: the same for ranks not heard of yet, and for start, validation and saving.
        now: the time.
    """

    def __init__(self, world: int, limit: float, patience: float, now: float):
        self.world, self.limit, self.patience = world, limit, patience
        self.beats: dict[int, Beat] = {}
        self.heard, self.moved = dict.fromkeys(range(world), now), dict.fromkeys(range(world), now)

    def see(self, beat: Beat, now: float) -> None:
        """Take note of a rank's beat, a new one or the one seen before."""
        before = self.beats.get(beat.rank)
        if before is None or beat.count != before.count:
            self.heard[beat.rank] = now
        if before is None or beat.progress != before.progress:
            self.moved[beat.rank] = now
        self.beats[beat.rank] = beat

    def verdict(self, now: float) -> str | None:
        """Which rank is lost, in one line; None while all is well."""
        silent = [rank for rank in range(self.world) if self._is_silent(rank, now)]
        if silent:
            return f'no sign of life for {self.limit:g} s from {self._names(silent)}: it was killed or stopped'
        if len(self.beats) < self.world or not all(self._is_stalled(beat, now) for beat in self.beats.values()):
            return None
        slow = [beat for beat in self.beats.values() if beat.phase not in (*BUSY, 'end')]
        first = min(beat.place for beat in self.beats.values())
        behind = [beat.rank for beat in slow or self.beats.values() if slow or beat.place == first]
        which = '' if len(behind) < self.world else ' (all are at the same place)'
        return f'no rank has made progress for {self.limit:g} s; behind is {self._names(behind)}{which}'

    def _is_silent(self, rank: int, now: float) -> bool:
        if rank not in self.beats:
            return now - self.heard[rank] > self.patience
        return self.beats[rank].phase != 'end' and now - self.heard[rank] > self.limit

    def _is_stalled(self, beat: Beat, now: float) -> bool:
        return now - self.moved[beat.rank] > (self.limit if beat.phase in BUSY else self.patience)

    def _names(self, ranks: list[int]) -> str:
        return ', '.join(
            str(self.beats[rank]) if rank in self.beats else f'rank {rank} (never heard of)' for rank in ranks
        )


def connect(host: str, port: int, timeout: float) -> dist.TCPStore:
    """A connection of one's own to the store that the run's processes have met at."""
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def last_beat(host: str, port: int, rank: int) -> Beat | None:
    """The last that was heard of a rank, for whoever has to say that it died; None if nothing."""
    try:
        store = connect(host, port, timeout=5)
        text = store.get(key(rank)).decode() if store.check([key(rank)]) else NONE
    except (RuntimeError, OSError):  # the store is gone with its process
        return None
    return Beat(**json.loads(text)) if text != NONE else None
