"""SIGTERM and SIGUSR1 are recorded, so that the run can stop after the current step."""

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
    """Handlers that only record a signal. ``asked`` is the first signal, or None."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers in the main thread; Python does not allow it in others."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number)


@functools.cache
def leaving() -> torch.Tensor:
    """Return a flag in shared memory that tells the workers of all loaders that this process is about to exit."""
    flag = torch.zeros(1, dtype=torch.uint8).share_memory_()
    # Exit handlers run in reverse order, so this one runs before that of multiprocessing, which sends SIGTERM to the
    # workers once and then waits for them without a limit.
    atexit.register(flag.fill_, 1)
    return flag


def shield_workers(loader: DataLoader) -> None:
    """Let the loader's workers ignore signals that a scheduler sends to all processes of a job.

    The run needs them for its last step. Call it before the workers start.
    """
    if not isinstance(loader.worker_init_fn, functools.partial) or loader.worker_init_fn.func is not start_worker:
        loader.worker_init_fn = functools.partial(start_worker, inner=loader.worker_init_fn, leaving=leaving())


def start_worker(worker_id: int, inner: Callable[[int], None] | None, leaving: torch.Tensor) -> None:
    """Ignore SIGUSR1 in a worker, and SIGTERM until the main process sets the flag ``leaving``."""

    def end(number: int, frame: FrameType | None) -> None:
        if leaving.item():
            os._exit(0)

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    if inner is not None:
        inner(worker_id)
