"""SIGTERM, SIGUSR1 and Ctrl-C are recorded, so that the run can stop after the current step."""

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
PRESSED = 'Ctrl-C: the run saves after this step and ends; a second Ctrl-C ends it at once, without saving'


class StopSignals:
    """Handlers that only record a signal. ``asked`` is the first signal, or None. A second Ctrl-C ends the process."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers in the main thread; Python does not allow it in others."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            # A shell lets processes in the background ignore Ctrl-C.
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            caught = STOP_SIGNALS if ignored else (*STOP_SIGNALS, signal.SIGINT)
            self._before = {number: signal.signal(number, self._note) for number in caught}

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # works even if the main thread is busy in a C++ function
            if 'RANK' not in os.environ:  # otherwise the launcher says it, once
                os.write(2, f'\n{PRESSED}\n'.encode())


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
    """Ignore SIGUSR1 and Ctrl-C in a worker, and SIGTERM until the main process sets the flag ``leaving``."""

    def end(number: int, frame: FrameType | None) -> None:
        if leaving.item():
            os._exit(0)

    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    if inner is not None:
        inner(worker_id)
