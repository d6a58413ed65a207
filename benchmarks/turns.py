"""Timing of two runs that take turns in one process, and of functions within a run."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch

GPU = torch.cuda.is_available()


class Done(Exception):
    """Ends a run after its last timed turn."""


def clocks() -> tuple[float, float]:
    """Return wall and CPU seconds after the device has finished its work."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Turns:
    """Lets two threads run in turn and records the time of each turn.

    Args:
        turns: number of turns of each run after its warm-up.
        size: number of iterations per turn.
        warmup: number of iterations before the first turn.
    """

    def __init__(self, turns: int, size: int, warmup: int):
        self.turns, self.size, self.warmup = turns, size, warmup
        self.baton = {name: threading.Semaphore(0) for name in ('protected', 'without')}
        self.times = {name: [] for name in (*self.baton, 'parts')}  # wall and CPU seconds of each turn
        self.start: dict[str, tuple[float, float]] = {}
        self.errors: list[BaseException] = []

    def tick(self, name: str, iteration: int) -> None:
        """Record the end of an iteration, and let the other run continue after a turn.

        Raises:
            Done: after the last turn.
        """
        done = iteration + 1 - self.warmup
        if done < 0 or done % self.size:
            return
        if name in self.start:
            self.times[name].append(tuple(b - a for a, b in zip(self.start[name], clocks())))
        if done >= self.turns * self.size or self.errors:
            raise Done
        if name in self.baton:
            self.give(name)
            self.baton[name].acquire()
        self.start[name] = clocks()

    def give(self, name: str) -> None:
        """Let the other run continue."""
        self.baton['without' if name == 'protected' else 'protected'].release()

    def summary(self, batch: int) -> dict:
        """Return images per second and the extra time of the protected run in percent, with quartiles over turns.

        Each protected turn but the first is compared with the mean of the two turns beside it.
        """
        ours, bare = np.array(self.times['protected']), np.array(self.times['without'])
        extra = 100 * (ours[1:] / ((bare[:-1] + bare[1:]) / 2) - 1)
        row = dict(
            images_per_s_protected=batch * self.size / float(np.median(ours[:, 0])),
            images_per_s_without=batch * self.size / float(np.median(bare[:, 0])),
        )
        for name, values in zip(('wall', 'cpu'), extra.T):
            low, row[f'{name}_percent'], high = np.percentile(values, (25, 50, 75)).tolist()
            row[f'{name}_quartiles'] = f'{low:.2f}..{high:.2f}'
        return row


class Stopwatch:
    """Measures the seconds in functions, without those in other timed functions that they call."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    @staticmethod
    def now(device: bool) -> float:
        if not GPU:
            return time.process_time()
        if device:
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, function: Callable, name: str | None, device: bool) -> Callable:
        """Return a timed function.

        Args:
            function: the function to time.
            name: name of its time in ``seconds``; None only subtracts it from the time of its caller.
            device: whether the function may use the device, so that the clock waits for it.
        """

        def timed(*args, **kwargs):
            begin = self.now(device)
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                total = self.now(device) - begin
                own = total - self.inner.pop()
                self.inner[-1] += total
                if name:
                    self.seconds[name] += own

        return timed

    def attach(self, stack: ExitStack, places: list[tuple[object, str, str | None]]) -> None:
        """Time functions, given as (class or module, function name, name of the time), until the stack is closed."""
        for owner, name, part in places:
            timed = self.wrap(getattr(owner, name), part, device=name != '__getitem__')
            stack.enter_context(mock.patch.object(owner, name, timed))
