"""SIGTERM and SIGUSR1 as wishes that the run grants at its next good moment."""

import atexit
import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Handlers that only take note. ``asked`` is the signal that came first, None as long as there is none."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Put the handlers in place, if this is the main thread: Python allows it nowhere else."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def restore(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number)


@functools.cache
def leaving() -> torch.Tensor:
    """One number, shared with the workers of all loaders: whether this process is about to end."""
    flag = torch.zeros(1, dtype=torch.uint8).share_memory_()
    # Handlers run in reverse order, so this one comes before multiprocessing's, which asks workers to end, once, and
    # then waits for them without end.
    atexit.register(flag.fill_, 1)
    return flag


def shield_workers(loader: DataLoader) -> None:
    """Let the loader's processes outlive a signal that a scheduler sends to all processes of a job.

    The run still needs them for its last step. Call it before they are started.
    """
    if not isinstance(loader.worker_init_fn, functools.partial) or loader.worker_init_fn.func is not start_worker:
        loader.worker_init_fn = functools.partial(start_worker, inner=loader.worker_init_fn, leaving=leaving())


def start_worker(worker_id: int, inner: Callable[[int], None] | None, leaving: torch.Tensor) -> None:
    """Ignore SIGUSR1, and SIGTERM as long as the run's process has not said that it leaves."""

    def end(number: int, frame: FrameType | None) -> None:
        if leaving.item():
            os._exit(0)

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    if inner is not None:
        inner(worker_id)
