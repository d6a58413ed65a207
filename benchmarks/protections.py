#!/usr/bin/env python3
"""What all that protects a run costs of a training step: seeds, guards, flags, heartbeat and the rest.

    benchmarks/protections.py --batch 64 --parts              # configs/pretrain/bootmae_vitb.py
    benchmarks/protections.py --config configs/pretrain/bootmae_demo_digits.py --steps 2000 --ranks 2

Two runs of `tools/train.py` take turns in one process, some steps each: one as every run is, one without protections
(mmengine's loop, loader, optimiser wrapper and checkpoint hook). A ratio compares a turn with the two of the other run
around it, so that a machine that changes its speed does no harm. Configs of image files get ready-made samples in
memory, others their own data; the global batch is --batch times --ranks, without accumulation: the worst case.
Prints images/s, the ratio, and with --parts what each protection takes of a step; adds a row to a CSV file.
"""

import argparse
import csv
import io
import os
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mmengine  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from mmengine.hooks import CheckpointHook, Hook  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.registry import DATASETS, HOOKS, OPTIM_WRAPPERS  # noqa: E402

from bootmae.data.samples import SeededSamples  # noqa: E402
from bootmae.engine import loops, run  # noqa: E402
from bootmae.engine.finite import NonFiniteHook  # noqa: E402
from bootmae.engine.heartbeat import Heart, HeartbeatHook  # noqa: E402
from bootmae.engine.optim import AutocastOptimWrapper, Guarded  # noqa: E402
from bootmae.engine.saving import SafeCheckpointHook  # noqa: E402
from bootmae.engine.watch import WatchHook  # noqa: E402
from bootmae.provenance import device_name, git_commit  # noqa: E402
from bootmae.report.rows import replace_file  # noqa: E402

CONFIG = 'configs/pretrain/bootmae_vitb.py'
RESULTS = ROOT / 'benchmarks' / 'results' / 'protections.csv'
SAVES = 1200  # seconds between two timed saves, SafeCheckpointHook's default
PARTS = {  # part: (class or module, names of its functions)
    'step seeds': [(loops, 'seed_step')],
    'sample seeds': [(SeededSamples, '__getitem__')],
    'guard': [(Guarded, 'update_params'), (Guarded, 'step')],
    'non-finite': [(NonFiniteHook, 'before_train_iter'), (NonFiniteHook, 'after_train_iter')],
    'flags': [(WatchHook, 'after_train_iter')],
    'histories': [(SafeCheckpointHook, 'after_train_iter')],
    'heartbeat': [(HeartbeatHook, 'before_train_iter'), (HeartbeatHook, 'after_train_iter')],
}
STOCK = [(OptimWrapper, 'update_params'), (OptimWrapper, 'step'), (CheckpointHook, 'after_train_iter')]  # within parts
COLUMNS = ('date', 'commit', 'device', 'versions', 'config', 'options', 'precision', 'batch', 'ranks', 'threads',
           'workers', 'steps', 'images_per_s_protected', 'images_per_s_without', 'wall_percent', 'wall_quartiles',
           'cpu_percent', 'cpu_quartiles', 'parts_percent', *(f'{part}_us' for part in PARTS), 'save_percent')


@DATASETS.register_module(force=True)
class ReadySamples(Dataset):
    """Noise that has been through a pipeline: a few samples, given again and again under a million numbers."""

    metainfo: dict = {}

    def __init__(self, pipeline: list[dict], kept: int = 64, side: int = 256):
        rng, pipeline = np.random.default_rng(0), Compose(pipeline)
        self.samples = [pipeline(dict(
            img=rng.integers(0, 256, (side, side, 3), dtype=np.uint8), img_shape=(side, side),
            ori_shape=(side, side), gt_label=k % 10, sample_idx=k)) for k in range(kept)]

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict:
        return dict(self.samples[index % len(self.samples)])


@OPTIM_WRAPPERS.register_module(force=True)
class BareAutocastOptimWrapper(AutocastOptimWrapper):
    """bf16 without a guard."""

    update_params, step = OptimWrapper.update_params, OptimWrapper.step


class Done(Exception):
    """Ends a run that has been timed."""


def on_gpu() -> bool:
    return torch.cuda.is_available()


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds, when the device has done all its work."""
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Turns:
    """Lets two threads run in turn, and notes how long each took.

    Args:
        turns: of each runner, after its warm-up.
        size: iterations of a turn.
        warmup: iterations before the first one.
    """

    def __init__(self, turns: int, size: int, warmup: int):
        self.turns, self.size, self.warmup = turns, size, warmup
        self.baton = {name: threading.Semaphore(0) for name in ('protected', 'without')}
        self.times = {name: [] for name in self.baton}  # (wall, CPU) seconds of each turn
        self.start: dict[str, tuple[float, float]] = {}
        self.errors: list[BaseException] = []

    def tick(self, name: str, iteration: int, alone: bool = False) -> None:
        """To be called at the end of each iteration.

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
        if not alone:
            self.give(name)
            self.baton[name].acquire()
        self.start[name] = clocks()

    def give(self, name: str) -> None:
        """Let the other one run."""
        self.baton['without' if name == 'protected' else 'protected'].release()

    def ratios(self, clock: int) -> np.ndarray:
        """Of each protected turn and the mean of the turns before and after it; 0 for wall, 1 for CPU time."""
        ours, bare = (np.array([turn[clock] for turn in self.times[name]]) for name in ('protected', 'without'))
        return ours[:len(bare) - 1] / ((bare[:-1] + bare[1:]) / 2)[:len(ours)]


TURNS: Turns | None = None  # of the runs under way, which build their hooks from configs


@HOOKS.register_module(force=True)
class TurnsHook(Hook):
    """Ends a turn after some iterations. Named last in a config, it comes after all other hooks."""

    priority = 'LOWEST'

    def __init__(self, name: str, alone: bool = False, save: bool = False):
        self.name, self.alone, self.save = name, alone, save
        self.seconds = None  # of a save

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        try:
            TURNS.tick(self.name, runner.iter, self.alone)
        except Done:
            if self.save:
                begin = time.perf_counter()
                next(hook for hook in runner.hooks if hasattr(hook, 'save_now')).save_now(runner)
                TURNS.save_seconds = time.perf_counter() - begin
            raise


@dataclass
class Stopwatch:
    """Time within functions, without that in other timed ones that they call."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    inner: list[float] = field(default_factory=lambda: [0.0])

    @staticmethod
    def now() -> float:
        if on_gpu():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def wrap(self, function, name: str | None):
        def timed(*args, **kwargs):
            begin = self.now()
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                total = self.now() - begin
                own = total - self.inner.pop()
                self.inner[-1] += total
                if name:
                    self.seconds[name] += own
                    self.calls[name] += 1
        return timed

    def attach(self, stack: ExitStack, dataset: type) -> None:
        """Time all parts until the stack is closed; ``dataset`` is the class within SeededSamples."""
        places = [(owner, name, part) for part, pairs in PARTS.items() for owner, name in pairs]
        places += [(owner, name, None) for owner, name in [*STOCK, (dataset, '__getitem__')]]
        for owner, name, part in places:
            stack.enter_context(mock.patch.object(owner, name, self.wrap(getattr(owner, name), part)))


def settings(args: argparse.Namespace, cfg, name: str, turns: Turns, workers: int) -> dict:
    """Options that make a config a run of the benchmark."""
    options = {
        'train_dataloader.batch_size': args.batch, 'auto_scale_lr.base_batch_size': args.batch * args.ranks,
        'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0,
        'train_cfg.max_epochs': 10 ** 6, 'default_hooks.checkpoint.interval': 10 ** 6, 'log_level': 'ERROR',
        'visualizer.vis_backends': [], 'experiment_name': f'{name}{time.time_ns()}', 'protected': name != 'without',
        'custom_hooks': [*cfg.get('custom_hooks', []), dict(type='TurnsHook', name='protected' if name == 'parts' else
                                                            name, alone=name == 'parts', save=name == 'parts')],
    }
    if name == 'without' and cfg.optim_wrapper.get('type') == 'AutocastOptimWrapper':
        options['optim_wrapper.type'] = 'BareAutocastOptimWrapper'
    if cfg.train_dataloader.dataset.type == 'ImageFiles':
        pipeline = [step for step in cfg.train_dataloader.dataset.pipeline if step['type'] != 'LoadImageFromFile']
        options['train_dataloader.dataset'] = dict(_delete_=True, type='ReadySamples', pipeline=pipeline)
    return options


def train(args: argparse.Namespace, name: str, turns: Turns, folder: str, workers: int) -> None:
    """Run until it has been timed."""
    cfg = run.load_config(args.config, args.cfg_options)
    options = {**(args.cfg_options or {}), **settings(args, cfg, name, turns, workers)}
    try:
        run.train(args.config, f'{folder}/{name}', options, launcher='pytorch' if args.ranks > 1 else 'none')
    except Done:
        pass


def train_in_turn(args: argparse.Namespace, turns: Turns, folder: str, workers: int) -> None:
    """The two runs, the protected one in the main thread, which gets the signals."""
    def bare() -> None:
        turns.baton['without'].acquire()
        try:
            train(args, 'without', turns, folder, workers)
        except BaseException as error:
            turns.errors.append(error)
        turns.give('without')

    thread = threading.Thread(target=bare)
    thread.start()
    try:
        train(args, 'protected', turns, folder, workers)
    except BaseException as error:
        turns.errors.append(error)
    turns.give('protected')
    thread.join()
    if turns.errors:
        raise turns.errors[0]


def time_parts(args: argparse.Namespace, turns: Turns, folder: str) -> Stopwatch:
    """A protected run in which each part is timed, samples in the training process."""
    watch = Stopwatch()
    cfg = run.load_config(args.config, args.cfg_options)
    kind = cfg.train_dataloader.dataset.type
    with ExitStack() as stack:
        watch.attach(stack, ReadySamples if kind == 'ImageFiles' else DATASETS.get(kind))
        train(args, 'parts', turns, folder, workers=0)
    return watch


def percent(ratios: np.ndarray) -> tuple[float, str]:
    """Median of the ratios less one, and its quartiles, in percent."""
    low, middle, high = 100 * (np.percentile(ratios, (25, 50, 75)) - 1)
    return middle, f'{low:.2f}..{high:.2f}'


def measure(args: argparse.Namespace) -> dict:
    """All numbers of this process as a row; prints nothing."""
    global TURNS
    protect = run.protect
    cfg = run.load_config(args.config, args.cfg_options)
    memory = cfg.train_dataloader.dataset.type != 'ImageFiles'
    workers = 0 if memory or not on_gpu() else cfg.train_dataloader.get('num_workers', 0)
    turns = TURNS = Turns(max(2, args.steps // (2 * args.turn)), args.turn, args.turn)
    row = dict.fromkeys(COLUMNS, '')
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(
            run, 'protect', lambda cfg: protect(cfg) if cfg.protected else None):
        train_in_turn(args, turns, folder, workers)
        images = args.batch * args.ranks * args.turn
        speeds = {name: images / statistics.median(turn[0] for turn in times) for name, times in turns.times.items()}
        step = statistics.median(turn[0 if on_gpu() else 1] for turn in turns.times['without']) / args.turn
        row |= dict(zip(('wall_percent', 'wall_quartiles'), percent(turns.ratios(0))))
        row |= dict(zip(('cpu_percent', 'cpu_quartiles'), percent(turns.ratios(1))))
        if args.parts:
            row |= parts_of(args, folder, step, workers)
    return row | dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M'), commit=git_commit(),
        device=device_name() if on_gpu() else f'{cpu_model()}, {os.cpu_count()} cores',
        versions=f'python {platform.python_version()}, torch {torch.__version__}, mmengine {mmengine.__version__}',
        config=args.config, options=' '.join(f'{key}={value}' for key, value in (args.cfg_options or {}).items()),
        precision='bf16' if 'Autocast' in cfg.optim_wrapper.get('type', '') else 'fp32', batch=args.batch,
        ranks=args.ranks, threads=torch.get_num_threads(), workers=workers, steps=2 * turns.turns * turns.size,
        images_per_s_protected=speeds['protected'], images_per_s_without=speeds['without'])


def parts_of(args: argparse.Namespace, folder: str, step: float, workers: int) -> dict:
    """Microseconds of a step for each part, and their sum as percent of an unprotected ``step`` (seconds)."""
    global TURNS
    TURNS = Turns(1, max(args.turn, args.steps // 4), 0)
    iterations = TURNS.size
    watch = time_parts(args, TURNS, folder)
    costs = {part: watch.seconds[part] / iterations for part in PARTS}
    total = sum(cost for part, cost in costs.items() if part != 'sample seeds' or not workers)  # workers: beside it
    return dict({f'{part}_us': 1e6 * cost for part, cost in costs.items()}, parts_percent=100 * total / step,
                save_percent=100 * TURNS.save_seconds / SAVES)


def cpu_model() -> str:
    names = [line.partition(':')[2].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
             if line.startswith('model name')] if Path('/proc/cpuinfo').exists() else []
    return names[0] if names else platform.machine()


def add_row(path: Path, row: dict) -> None:
    """Append a row to a CSV file, which a crash leaves as it was.

    Raises:
        ValueError: if the file has other columns.
    """
    text = path.read_text(encoding='utf-8') if path.exists() else ','.join(COLUMNS) + '\n'
    if text.splitlines()[0] != ','.join(COLUMNS):
        raise ValueError(f'{path} has other columns than {",".join(COLUMNS)}: give another file with --results')
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator='\n').writerow(
        {name: f'{value:.4g}' if isinstance(value, float) else value for name, value in row.items()})
    replace_file(path, text + buffer.getvalue())
