"""Ends this process when another one of the run died or hangs, instead of waiting for half an hour."""

import atexit
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...distributed.beats import NONE, Beat, Observer, connect, key
from ...distributed.exits import LOST_RANK

FILES = 3  # number of files that a message names
PATIENCE = 1800.0  # seconds, see HeartbeatHook


class Heart:
    """Two threads of this process: one writes and reads heartbeats, which may block; the other checks them.

    Args:
        store: connection to the run's store, used by these threads only.
        beat: first heartbeat of this rank.
        world: number of ranks.
        limit: see :class:`HeartbeatHook`.
        patience: see :class:`HeartbeatHook`.
        interval: see :class:`HeartbeatHook`.
        files: returns the files that are being read.
        fail: called once, with the reason, when a rank is lost.
    """

    def __init__(
        self,
        store: dist.Store,
        beat: Beat,
        world: int,
        limit: float,
        patience: float,
        interval: float,
        files: Callable[[], list[str]],
        fail: Callable[[str], None],
    ):
        self.store, self.beat, self.world, self.interval = store, beat, world, interval
        self.limit, self.files, self.fail = limit, files, fail
        self.observer = Observer(world, limit, patience, time.monotonic())
        self.answered, self.asleep = time.monotonic(), time.monotonic()
        self.count, self.lock = 0, threading.Lock()  # the lock guards the observer, which both threads use
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=target, daemon=True, name=f'heartbeat {target.__name__}')
            for target in (self._talk, self._watch)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self, phase: str | None = None) -> None:
        """Stop both threads. A ``phase`` (``'end'``) is written as the last heartbeat: this rank is done."""
        self.stopping.set()
        for thread in self.threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=2)
        if phase is not None and not self.threads[0].is_alive():
            with contextlib.suppress(RuntimeError):  # the store ends with the first rank that ends
                self._write(replace(self.beat, phase=phase))

    def move(self, phase: str, iteration: int) -> None:
        """Record progress. Cheap, because the training thread calls it."""
        self.beat = replace(self.beat, phase=phase, iteration=iteration, progress=self.beat.progress + 1)

    def _write(self, beat: Beat) -> None:
        self.count += 1
        try:
            files = [path[-300:] for path in self.files()[:FILES]]
        except Exception:  # the heartbeat must be written whatever is wrong with the data set
            files = []
        self.store.set(key(beat.rank), json.dumps(asdict(replace(beat, count=self.count, files=files))))

    def _talk(self) -> None:
        """Write this rank's heartbeat and read those of all ranks every ``interval`` seconds."""
        keys = [key(rank) for rank in range(self.world)]
        placed = False
        while not self.stopping.is_set():
            try:
                if not placed:
                    for name in keys:  # multi_get would wait for missing keys
                        self.store.compare_set(name, '', NONE)
                    placed = True
                self._write(self.beat)
                texts = self.store.multi_get(keys)
                self.answered = time.monotonic()
                beats = [Beat(**json.loads(text)) for text in texts if text.decode() != NONE]
                with self.lock:
                    for beat in beats:
                        self.observer.see(beat, self.answered)
            except RuntimeError as error:
                print_log(f'heartbeat: the store does not answer: {error}', 'current', logging.DEBUG)
            self.stopping.wait(self.interval)

    def _watch(self) -> None:
        """Call ``fail`` when a rank is lost."""
        while not self.stopping.wait(min(self.interval, 1.0)):
            verdict = self.check(time.monotonic())
            if verdict is not None and not self.stopping.is_set():
                self.fail(verdict)
                return

    def check(self, now: float) -> str | None:
        """Return one line that says which rank is lost, or None."""
        with self.lock:
            return self._check(now)

    def _check(self, now: float) -> str | None:
        woken, self.asleep = now - self.asleep > self.limit / 2, now
        if woken:  # this process or its host was suspended: first hear from the others again
            self.answered = now
            self.observer.heard = dict.fromkeys(self.observer.heard, now)
            self.observer.moved = dict.fromkeys(self.observer.moved, now)
            return None
        if now - self.answered > self.limit:
            return f"the store of rank 0's host has not answered for {self.limit:g} s: the host or rank 0 is lost"
        return self.observer.verdict(now)


@HOOKS.register_module()
class HeartbeatHook(Hook):
    """Ends this process with exit code 5 when another rank dies or hangs, and names that rank.

    Without it the other ranks wait in a collective for 10 to 30 minutes. A run with one process starts no threads.

    Args:
        limit: seconds after which a silent rank, or a standstill of all ranks in training, ends the run. The first
            step may compile and counts as the start.
        patience: the same for a standstill in the start, in validation and while saving.
        interval: seconds between two heartbeats.
    """

    priority = 'LOWEST'

    def __init__(self, limit: float = 90, patience: float = PATIENCE, interval: float = 5):
        if not 0 < interval < limit <= patience:
            raise ValueError(
                f'HeartbeatHook interval={interval}, limit={limit}, patience={patience}: give '
                '0 < interval < limit <= patience'
            )
        self.limit, self.patience, self.interval = limit, patience, interval
        self.heart: Heart | None = None
        self.runner: Runner | None = None
        self.stepped = False  # whether this process has made a step; a resumed run may begin with a validation

    def before_run(self, runner: Runner) -> None:
        if runner.world_size < 2 or self.heart is not None or 'MASTER_ADDR' not in os.environ:
            return
        self.runner = runner
        store = connect(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), timeout=self.limit)
        beat = Beat(runner.rank, socket.gethostname(), os.getpid())
        self.heart = Heart(
            store, beat, runner.world_size, self.limit, self.patience, self.interval, self._files, self._fail
        )
        self.heart.start()
        atexit.register(self.close)

    def after_run(self, runner: Runner) -> None:
        self.close('end')

    def close(self, phase: str | None = None) -> None:
        """Stop the threads; also called for runs that end with an exception."""
        if self.heart is not None:
            self.heart.stop(phase)
            self.heart = None

    def _files(self) -> list[str]:
        """Return the files that the training data set is reading."""
        loop = getattr(self.runner, '_train_loop', None)
        paths = getattr(getattr(getattr(loop, 'dataloader', None), 'dataset', None), 'loading_paths', None)
        return paths() if paths is not None else []

    def _fail(self, verdict: str) -> None:
        """Print the reason and exit at once: the main thread may hang in a collective that nothing can interrupt."""
        line = f'rank {self.runner.rank} ({socket.gethostname()}): {verdict}'
        try:
            self.runner.logger.error(line)
            print(f'stopped: {line}', file=sys.stderr, flush=True)
            for handler in self.runner.logger.handlers:
                handler.flush()
        finally:  # also if nobody reads the output anymore
            os._exit(LOST_RANK)

    def report_progress(self, runner: Runner, phase: str | None = None) -> None:
        """Record progress of this rank, in the current phase or a new one; other hooks send it as an event."""
        if self.heart is not None:
            self.heart.move(phase or self.heart.beat.phase, runner.iter)

    def _enter(self, runner: Runner, phase: str) -> None:
        """Enter a phase of a training step, which is the start until the first step is done."""
        self.report_progress(runner, phase if self.stepped else 'start')

    def before_train_epoch(self, runner: Runner) -> None:
        self._enter(runner, 'data')

    after_val = before_train_epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._enter(runner, 'step')

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.stepped = True
        if self.heart is not None:
            self.heart.move('data', runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.report_progress(runner, 'save')

    def after_train_epoch(self, runner: Runner) -> None:
        self.report_progress(runner, 'between epochs')

    def before_val(self, runner: Runner, *args, **kwargs) -> None:
        self.report_progress(runner, 'val')

    after_val_iter = after_test_iter = before_val
