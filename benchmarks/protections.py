#!/usr/bin/env python3
"""Measure what the protections of a run cost per training step: seeds, guards, flags, heartbeat and the rest.

    benchmarks/protections.py --batch 64 --parts              # configs/pretrain/bootmae_vitb.py
    benchmarks/protections.py --config configs/pretrain/bootmae_demo_digits.py --steps 2000 --ranks 2

Two runs of `tools/train.py` take turns of some steps in one process: a normal one and one without protections
(mmengine's loop, loader, optimizer wrapper and checkpoint hook). Each turn is compared with the two turns of the other
run around it, so changes in the machine's speed cancel. Configs with image files read ready-made samples from memory,
others their own data. The global batch is --batch times --ranks without accumulation, which is the worst case.
Prints images/s, the ratio, and with --parts the time of each protection per step; adds a row to a CSV file.
"""

import argparse
import csv
import io
import os
import platform
import re
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.utils.data import Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import mmengine  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from mmengine.hooks import CheckpointHook, Hook  # noqa: E402
from mmengine.optim import AmpOptimWrapper, OptimWrapper  # noqa: E402
from mmengine.registry import HOOKS, OPTIM_WRAPPERS  # noqa: E402
from mmpretrain.registry import DATASETS  # noqa: E402
from turns import GPU, Done, Stopwatch, Turns  # noqa: E402

from bootmae.commands.train import train as run_training  # noqa: E402
from bootmae.config import steps  # noqa: E402
from bootmae.config.load import load_config  # noqa: E402
from bootmae.config.options import OptionsAction  # noqa: E402
from bootmae.data.samples import SeededSamples  # noqa: E402
from bootmae.engine.hooks.bad_images import BadImagesHook  # noqa: E402
from bootmae.engine.hooks.checkpoint import SafeCheckpointHook  # noqa: E402
from bootmae.engine.hooks.heartbeat import HeartbeatHook  # noqa: E402
from bootmae.engine.hooks.nonfinite import NonFiniteHook  # noqa: E402
from bootmae.engine.hooks.preemption import PreemptionHook  # noqa: E402
from bootmae.engine.hooks.provenance import precision_of  # noqa: E402
from bootmae.engine.optimizers.wrappers import AutocastOptimWrapper, Guarded, GuardedAmpOptimWrapper  # noqa: E402
from bootmae.engine.runner import loops  # noqa: E402
from bootmae.engine.runner.build import await_processes  # noqa: E402
from bootmae.engine.runner.stop import save_now  # noqa: E402
from bootmae.results.provenance import device_name, git_commit  # noqa: E402
from bootmae.results.rows import replace_file  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results' / 'protections.csv'
SAVES = 1200  # seconds between two timed saves, SafeCheckpointHook's default
PARTS = {  # part: (class or module, names of its functions)
    'step seeds': [(loops, 'seed_step')],
    'sample seeds': [(SeededSamples, '__getitem__')],
    'guard': [(kind, name) for kind in (Guarded, GuardedAmpOptimWrapper) for name in ('update_params', 'step')],
    'non-finite': [(NonFiniteHook, 'before_train_iter'), (NonFiniteHook, 'after_train_iter')],
    'flags': [(BadImagesHook, 'after_train_iter'), (PreemptionHook, 'after_train_iter')],
    'histories': [(SafeCheckpointHook, 'after_train_iter')],
    'heartbeat': [(HeartbeatHook, 'before_train_iter'), (HeartbeatHook, 'after_train_iter')],
}
STOCK = [  # mmengine's functions inside the parts, which do not count
    (OptimWrapper, 'update_params'),
    (OptimWrapper, 'step'),
    (AmpOptimWrapper, 'step'),
    (CheckpointHook, 'after_train_iter'),
]
COLUMNS = (
    'date',
    'commit',
    'device',
    'versions',
    'config',
    'options',
    'precision',
    'batch',
    'ranks',
    'threads',
    'workers',
    'steps',
    'images_per_s_protected',
    'images_per_s_without',
    'wall_percent',
    'wall_quartiles',
    'cpu_percent',
    'cpu_quartiles',
    'parts_percent',
    *(f'{part}_us' for part in PARTS),
    'save_percent',
)


@DATASETS.register_module(force=True)
class ReadySamples(Dataset):
    """A few samples of noise that went through a pipeline once and are returned again and again."""

    metainfo: dict = {}

    def __init__(self, pipeline: list[dict], kept: int = 64, side: int = 256):
        rng, pipeline = np.random.default_rng(0), Compose(pipeline)
        self.samples = [
            pipeline(
                dict(
                    img=rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
                    img_shape=(side, side),
                    ori_shape=(side, side),
                    gt_label=k % 10,
                    sample_idx=k,
                )
            )
            for k in range(kept)
        ]

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> dict:
        return dict(self.samples[index % len(self.samples)])


@OPTIM_WRAPPERS.register_module(force=True)
class BareAutocastOptimWrapper(AutocastOptimWrapper):
    """bf16 autocast without the guard."""

    update_params, step = OptimWrapper.update_params, OptimWrapper.step


TURNS: Turns | None = None  # the turns of the current runs, whose hooks are built from configs


@HOOKS.register_module(force=True)
class TurnsHook(Hook):
    """Ends a turn after some iterations. As the last hook of a config it runs after all others."""

    priority = 'LOWEST'

    def __init__(self, name: str):
        self.name = name

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.name == 'parts' and runner.iter == TURNS.warmup:
            begin = time.perf_counter()
            save_now(runner, counted=False)
            TURNS.save_seconds = time.perf_counter() - begin
        TURNS.tick(self.name, runner.iter)


def run_options(args: argparse.Namespace, cfg: Config, name: str, workers: int) -> dict:
    """Return the options that turn a config into a run of the benchmark."""
    options = {
        'train_dataloader.batch_size': args.batch,
        'auto_scale_lr.base_batch_size': args.batch * args.ranks,
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0,
        'train_cfg.max_epochs': 2000,
        'default_hooks.checkpoint.interval': 10**6,
        'log_level': 'ERROR',
        'visualizer.vis_backends': [],
        'experiment_name': f'{name}{time.time_ns()}',
        'custom_hooks': [*cfg.get('custom_hooks', []), dict(type='TurnsHook', name=name)],
    }
    if name == 'without' and cfg.optim_wrapper.get('type') == 'AutocastOptimWrapper':
        options['optim_wrapper.type'] = 'BareAutocastOptimWrapper'
    if cfg.train_dataloader.dataset.type == 'ImageFiles':
        pipeline = [step for step in cfg.train_dataloader.dataset.pipeline if step['type'] != 'LoadImageFromFile']
        options['train_dataloader.dataset'] = dict(_delete_=True, type='ReadySamples', pipeline=pipeline)
    return options


def train(args: argparse.Namespace, name: str, folder: str, workers: int) -> None:
    """Train until the last timed turn."""
    cfg = load_config(args.config, args.cfg_options)
    options = (args.cfg_options or {}) | run_options(args, cfg, name, workers)
    with suppress(Done):
        run_training(args.config, f'{folder}/{name}', options, launcher='pytorch' if args.ranks > 1 else 'none')


def train_in_turn(args: argparse.Namespace, turns: Turns, folder: str, workers: int) -> None:
    """Train both runs; the protected one runs in the main thread, which gets the signals."""

    def bare() -> None:
        turns.baton['without'].acquire()
        try:
            train(args, 'without', folder, workers)
        except BaseException as error:
            turns.errors.append(error)
        turns.give('without')

    thread = threading.Thread(target=bare)
    thread.start()
    try:
        train(args, 'protected', folder, workers)
    except BaseException as error:
        turns.errors.append(error)
    turns.give('protected')
    thread.join()
    if turns.errors:
        raise turns.errors[0]


def is_protected(cfg: Config) -> bool:
    return cfg.custom_hooks[-1]['name'] != 'without'  # the TurnsHook of run_options


def measure(args: argparse.Namespace) -> dict:
    """Return all numbers of this process as a row."""
    global TURNS
    original, cfg = steps.apply_run_defaults, load_config(args.config, args.cfg_options)
    files = cfg.train_dataloader.dataset.type == 'ImageFiles'
    workers = cfg.train_dataloader.get('num_workers', 0) if files and GPU else 0
    turns = TURNS = Turns(max(2, args.steps // (2 * args.turn)), args.turn, args.turn)
    row = dict.fromkeys(COLUMNS, '')
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(steps, 'apply_run_defaults', lambda cfg: original(cfg) if is_protected(cfg) else None),
    ):
        train_in_turn(args, turns, folder, workers)
        row |= turns.summary(args.batch * args.ranks)
        if args.parts:
            step = np.median(turns.times['without'], 0)[0 if GPU else 1] / args.turn
            dataset = ReadySamples if files else DATASETS.get(cfg.train_dataloader.dataset.type)
            row |= parts_of(args, dataset, folder, step, workers)
    return row | dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M'),
        commit=git_commit(),
        device=device_name() if GPU else f'{cpu_model()}, {os.cpu_count()} cores',
        versions=f'python {platform.python_version()}, torch {torch.__version__}, mmengine {mmengine.__version__}',
        config=args.config,
        options=' '.join(f'{key}={value}' for key, value in (args.cfg_options or {}).items()),
        precision=precision_of(cfg),
        batch=args.batch,
        ranks=args.ranks,
        threads=torch.get_num_threads(),
        workers=workers,
        steps=2 * turns.turns * turns.size,
    )


def parts_of(args: argparse.Namespace, dataset: type, folder: str, step: float, workers: int) -> dict:
    """Time each part in a protected run that loads samples of class ``dataset`` in the training process.

    Returns:
        Microseconds per step of each part, and their sum in percent of an unprotected ``step`` (in seconds).
    """
    global TURNS
    turns = TURNS = Turns(1, max(args.turn, args.steps // 4), 3)
    watch = Stopwatch()
    with ExitStack() as stack:
        places = [(owner, name, part) for part, pairs in PARTS.items() for owner, name in pairs]
        watch.attach(stack, places + [(owner, name, None) for owner, name in [*STOCK, (dataset, '__getitem__')]])
        train(args, 'parts', folder, workers=0)
    costs = {part: watch.seconds[part] / (turns.size + turns.warmup) for part in PARTS}
    total = sum(
        cost for part, cost in costs.items() if part != 'sample seeds' or not workers
    )  # workers draw seeds in parallel
    return dict(
        {f'{part}_us': 1e6 * cost for part, cost in costs.items()},
        parts_percent=100 * total / step,
        save_percent=100 * turns.save_seconds / SAVES,
    )


def cpu_model() -> str:
    info = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.*)', info.read_text() if info.exists() else '')
    return found[1] if found else platform.machine()


def add_row(path: Path, row: dict) -> None:
    """Append a row to a CSV file atomically.

    Raises:
        ValueError: if the file has other columns.
    """
    text = path.read_text(encoding='utf-8') if path.exists() else ','.join(COLUMNS) + '\n'
    if text.splitlines()[0] != ','.join(COLUMNS):
        raise ValueError(f'{path} has other columns than {",".join(COLUMNS)}: give another file with --results')
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator='\n').writerow(
        {name: f'{value:.4g}' if isinstance(value, float) else value for name, value in row.items()}
    )
    replace_file(path, text + buffer.getvalue())


def report(row: dict) -> str:
    """Describe a row."""
    lines = [
        f'{row["device"]}, {row["versions"]}, commit {row["commit"]}, {row["date"]} UTC',
        f'{row["config"]} {row["options"]}: batch {row["batch"]} x {row["ranks"]} process(es), {row["precision"]}, '
        f'{row["steps"]} steps',
        f'images/s: {row["images_per_s_protected"]:.4g} with all protections, '
        f'{row["images_per_s_without"]:.4g} without',
        f'cost of a step: {row["wall_percent"]:+.2f} % of the time (quartiles {row["wall_quartiles"]}), '
        f'{row["cpu_percent"]:+.2f} % of the CPU time ({row["cpu_quartiles"]})',
    ]
    if row['parts_percent'] != '':
        lines += [f'  {part:14}{row[f"{part}_us"]:10.1f} us' for part in PARTS]
        lines += [
            f'sum of the parts: {row["parts_percent"]:.3f} % of a step'
            + (' without sample seeds, which are drawn in workers' if row['workers'] else ''),
            f'a save every 20 minutes: {row["save_percent"]:.3f} % of the time',
        ]
    return '\n'.join(lines)


def run_rank(rank: int, args: argparse.Namespace, port: int) -> None:
    """Run one of several processes."""
    os.environ |= dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(args.ranks), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    finish(args, rank)
    await_processes()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo


def finish(args: argparse.Namespace, rank: int = 0) -> None:
    """Measure; rank 0 prints and writes the result."""
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    row = measure(args)
    if rank == 0:
        print(report(row))
        add_row(args.results, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/pretrain/bootmae_vitb.py')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='such as model.backbone.arch=small')
    parser.add_argument('--batch', type=int, default=64, help='number of images per process')
    parser.add_argument('--steps', type=int, default=400, help='number of steps of both runs together')
    parser.add_argument('--turn', type=int, default=5, help='number of steps per turn')
    parser.add_argument('--ranks', type=int, default=1, help='number of processes, each on its own GPU, if any')
    parser.add_argument('--device', choices=('auto', 'cpu'), default='auto')
    parser.add_argument('--parts', action='store_true', help='also time each protection')
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.device == 'cpu' and GPU:  # mmengine chose the device at its import
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        os.execv(sys.executable, [sys.executable, *sys.argv])
    os.chdir(ROOT)
    if args.ranks == 1:
        return finish(args)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (args, port), args.ranks)


if __name__ == '__main__':
    main()
