"""Heartbeats of the ranks of a run, and the decision which rank is lost.

The launcher imports this module and must start at once, so it imports nothing of this package.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

BUSY = ('data', 'step')  # short phases: waiting for a batch, computing a step
ORDER = dict(start=0, data=1, step=2)  # order of the phases within an iteration; others are 3
NONE = '-'  # value of a rank that has not written a heartbeat yet


@dataclass(frozen=True)
class Beat:
    """The state of a rank. ``count`` grows with every heartbeat, ``progress`` with every change of phase."""

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
        """Position in the training, for comparison between ranks."""
        return self.iteration, ORDER.get(self.phase, 3)

    def __str__(self) -> str:
        files = f', last files {", ".join(self.files)}' if self.files else ''
        return (
            f'rank {self.rank} (host {self.host}, pid {self.pid}, phase {self.phase}, iteration '
            f'{self.iteration}{files})'
        )


def key(rank: int) -> str:
    """Return the TCPStore key of a rank's heartbeat."""
    return f'bootmae/heartbeat/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}/{rank}'


class Observer:
    """Measures with the clock of this process how long ago the heartbeats changed; clocks of hosts may differ.

    Args:
        world: number of ranks.
        limit: maximum seconds without a heartbeat, or without progress of any rank in a short phase.
        patience: the same for ranks without any heartbeat yet, and for start, validation and saving.
        now: the current time in seconds.
    """

    def __init__(self, world: int, limit: float, patience: float, now: float):
        self.world, self.limit, self.patience = world, limit, patience
        self.beats: dict[int, Beat] = {}
        self.heard, self.moved = dict.fromkeys(range(world), now), dict.fromkeys(range(world), now)

    def see(self, beat: Beat, now: float) -> None:
        """Record a rank's heartbeat, whether it is new or not."""
        before = self.beats.get(beat.rank)
        if before is None or beat.count != before.count:
            self.heard[beat.rank] = now
        if before is None or beat.progress != before.progress:
            self.moved[beat.rank] = now
        self.beats[beat.rank] = beat

    def verdict(self, now: float) -> str | None:
        """Return one line that says which rank is lost, or None."""
        silent = [rank for rank in range(self.world) if self._is_silent(rank, now)]
        if silent:
            waited = self.limit if set(silent) <= set(self.beats) else self.patience
            return f'no heartbeat for {waited:g} s from {self._names(silent)}: it was killed or suspended'
        if len(self.beats) < self.world or not all(self._is_stalled(beat, now) for beat in self.beats.values()):
            return None
        slow = [beat for beat in self.beats.values() if beat.phase not in (*BUSY, 'end')]
        first = min(beat.place for beat in self.beats.values())
        behind = [beat.rank for beat in slow or self.beats.values() if slow or beat.place == first]
        which = '' if len(behind) < self.world else ' (all are at the same position)'
        waited = max(self.limit if beat.phase in BUSY else self.patience for beat in self.beats.values())
        return f'no rank has made progress for {waited:g} s; the last is {self._names(behind)}{which}'

    def _is_silent(self, rank: int, now: float) -> bool:
        if rank not in self.beats:
            return now - self.heard[rank] > self.patience
        return self.beats[rank].phase != 'end' and now - self.heard[rank] > self.limit

    def _is_stalled(self, beat: Beat, now: float) -> bool:
        return now - self.moved[beat.rank] > (self.limit if beat.phase in BUSY else self.patience)

    def _names(self, ranks: list[int]) -> str:
        return ', '.join(
            str(self.beats[rank]) if rank in self.beats else f'rank {rank} (no heartbeat yet)' for rank in ranks
        )


def connect(host: str, port: int, timeout: float) -> dist.TCPStore:
    """Open a new connection to the store of the run's rendezvous."""
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def last_beat(host: str, port: int, rank: int) -> Beat | None:
    """Return the last heartbeat of a rank, or None, to report where it died."""
    try:
        store = connect(host, port, timeout=5)
        text = store.get(key(rank)).decode() if store.check([key(rank)]) else NONE
    except (RuntimeError, OSError):  # the store ended with its process
        return None
    return Beat(**json.loads(text)) if text != NONE else None
