"""Notices that another process of the run is dead or hangs, and ends this one instead of waiting for half an hour."""

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

from ...distributed.beats import NONE, Beat, Observer, connect, key
from ...distributed.exits import LOST_RANK

FILES = 3  # that are named


class Heart:
    """Two threads of this process: one writes and reads beats, which may block, the other judges.

    Args:
        store: a connection of its own.
        beat: this rank's first.
        files: tells what is being read.
        fail: called with the verdict, once.
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
        self.count, self.lock = 0, threading.Lock()  # of the observer, which both threads use
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=target, daemon=True, name=f'heartbeat {target.__name__}')
            for target in (self._talk, self._judge)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self, phase: str | None = None) -> None:
        """End both threads; with ``phase='end'`` the others are told that this rank is done."""
        self.stopping.set()
        for thread in self.threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=2)
        if phase is not None and not self.threads[0].is_alive():
            with contextlib.suppress(RuntimeError):  # the store went with the first that ended
                self._write(replace(self.beat, phase=phase))

    def move(self, phase: str, iteration: int) -> None:
        """Note progress; cheap, for the training thread."""
        self.beat = replace(self.beat, phase=phase, iteration=iteration, progress=self.beat.progress + 1)

    def _write(self, beat: Beat) -> None:
        self.count += 1
        try:
            files = [path[-300:] for path in self.files()[:FILES]]
        except Exception:  # whatever is wrong with a data set, a beat is due
            files = []
        self.store.set(key(beat.rank), json.dumps(asdict(replace(beat, count=self.count, files=files))))

    def _talk(self) -> None:
        """A beat, and one question for all ranks', every ``interval`` seconds."""
        keys = [key(rank) for rank in range(self.world)]
        placed = False
        while not self.stopping.is_set():
            try:
                if not placed:
                    for name in keys:  # so that none has to be waited for
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

    def _judge(self) -> None:
        while not self.stopping.wait(min(self.interval, 1.0)):
            verdict = self.check(time.monotonic())
            if verdict is not None and not self.stopping.is_set():
                self.fail(verdict)
                return

    def check(self, now: float) -> str | None:
        """What is wrong, in one line; None while all is well."""
        with self.lock:
            return self._check(now)

    def _check(self, now: float) -> str | None:
        woken, self.asleep = now - self.asleep > self.limit / 2, now
        if woken:  # this process itself was stopped, or its host: hear the others first
            self.answered = now
            self.observer.heard = dict.fromkeys(self.observer.heard, now)
            self.observer.moved = dict.fromkeys(self.observer.moved, now)
            return None
        if now - self.answered > self.limit:
            return f"the store of rank 0's host does not answer for {self.limit:g} s: the host, or rank 0, is lost"
        return self.observer.verdict(now)


@HOOKS.register_module()
class HeartbeatHook(Hook):
    """Ends this process with exit code 5 when another rank dies or hangs, naming it.

    A rank that is gone on another host leaves the others waiting in a collective, for 10 to 30 minutes by default.
    Nothing is started for a run of one process.

    Args:
        limit: seconds until a silent rank, or a standstill of all ranks within training, ends the run. The first step,
            which may compile, counts as start.
        patience: seconds of standstill in start, validation and saving.
        interval: seconds between beats.
    """

    priority = 'LOWEST'

    def __init__(self, limit: float = 90, patience: float = 1800, interval: float = 5):
        if not 0 < interval < limit <= patience:
            raise ValueError(
                f'HeartbeatHook interval={interval}, limit={limit}, patience={patience}: each must be '
                'larger than the one before'
            )
        self.limit, self.patience, self.interval = limit, patience, interval
        self.heart: Heart | None = None
        self.runner = None

    def before_run(self, runner) -> None:
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

    def after_run(self, runner) -> None:
        self.close('end')

    def close(self, phase: str | None = None) -> None:
        """Stop the threads; also for runs that end by an exception."""
        if self.heart is not None:
            self.heart.stop(phase)
            self.heart = None

    def _files(self) -> list[str]:
        loop = getattr(self.runner, '_train_loop', None)
        paths = getattr(getattr(getattr(loop, 'dataloader', None), 'dataset', None), 'loading_paths', None)
        return paths() if paths is not None else []

    def _fail(self, verdict: str) -> None:
        """Say it and leave at once: the main thread may hang in a collective that nothing can interrupt."""
        line = f'rank {self.runner.rank} ({socket.gethostname()}): {verdict}'
        self.runner.logger.error(line)
        print(f'stopped: {line}', file=sys.stderr, flush=True)
        for handler in self.runner.logger.handlers:
            handler.flush()
        os._exit(LOST_RANK)

    def _move(self, runner, phase: str) -> None:
        if self.heart is not None:
            self.heart.move(phase, runner.iter)

    def before_train_epoch(self, runner) -> None:
        self._resume_work(runner)

    def after_val(self, runner) -> None:
        self._resume_work(runner)

    def _resume_work(self, runner) -> None:
        if self.heart is not None and self.heart.beat.phase != 'start':
            self._move(runner, 'data')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.heart is not None and self.heart.beat.phase != 'start':
            self._move(runner, 'step')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.heart is not None:
            self.heart.move('data', runner.iter + 1)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._move(runner, 'save')

    def after_train_epoch(self, runner) -> None:
        self._move(runner, 'between epochs')

    def before_val(self, runner) -> None:
        self._move(runner, 'val')

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._move(runner, 'val')

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._move(runner, 'val')
