#!/usr/bin/env python3
"""Measure whether memory grows with training steps or with the list of files.

    benchmarks/memory.py                   # 20,000 steps, then a million file names; about ten minutes on one core
    benchmarks/memory.py --steps 2000 --files 100000

Prints the memory of the training process and its workers 20 times during the run, its slope over the second half in MB
per 1,000 steps, the size of the checkpoints, and the memory that a worker adds for the list of files. The exit code is
1 if a slope is above 1 MB or a file grows.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import HOOKS  # noqa: E402

from bootmae.commands.train import train as run_training  # noqa: E402
from bootmae.data.images import ImageFiles  # noqa: E402
from bootmae.data.samples import SeededSamples  # noqa: E402

LIMIT = 1.0  # MB per 1,000 steps
POINTS = 20


def anonymous_mb() -> float:
    """Return the anonymous memory of this process, shared with its workers or not."""
    return int(re.search(r'RssAnon:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def private_mb(pid: int) -> float:
    """Return the memory that a worker has written and does not share."""
    return int(re.search(r'Private_Dirty:\s+(\d+)', Path(f'/proc/{pid}/smaps_rollup').read_text())[1]) / 1024


@HOOKS.register_module(force=True)
class MemoryRecorder(Hook):
    """Records the memory of this process and its workers ``POINTS`` times during the run."""

    rows: list[tuple[int, float, float]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, runner.max_iters // POINTS):
            workers = getattr(runner.train_dataloader._iterator, '_workers', [])
            self.rows.append((runner.iter + 1, anonymous_mb(), sum(private_mb(worker.pid) for worker in workers)))


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the slope over the second half in MB per 1,000 steps."""
    half = len(steps) // 2
    return 1000 * float(np.polyfit(steps[half:], values[half:], 1)[0])


def train(steps: int, work_dir: str) -> list[str]:
    """Train a toy BootMAE with two workers; return what grows."""
    MemoryRecorder.rows = []
    run_training(
        str(ROOT / 'configs' / 'pretrain' / 'bootmae_debug.py'),
        work_dir,
        {
            'train_dataloader.batch_size': 8,
            'auto_scale_lr.base_batch_size': 8,
            'train_cfg.max_epochs': steps // 20,
            'train_dataloader.num_workers': 2,
            'train_dataloader.persistent_workers': True,
            'default_hooks.memory.type': 'MemoryRecorder',
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': steps // 10,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
            'log_level': 'ERROR',
        },
    )
    rows, faults = np.array(MemoryRecorder.rows), []
    for k in range(len(rows)):
        print(f'step {rows[k, 0]:7.0f}: training process {rows[k, 1]:7.1f} MB, workers {rows[k, 2]:7.1f} MB')
    for name, column in (('training process', 1), ('workers', 2)):
        growth = slope(rows[:, 0], rows[:, column])
        print(f'{name}: {growth:+.3f} MB per 1,000 steps')
        faults += [f'{name} grows'] if growth > LIMIT else []
    files = sorted(Path(work_dir).glob('iter_*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    sizes = [path.stat().st_size for path in files[1:]]  # the first has fewer than 256 values of each curve
    print(f'checkpoints: {min(sizes):,} to {max(sizes):,} bytes')
    return faults + (['checkpoints grow'] if max(sizes) - min(sizes) > 0.01 * min(sizes) else [])


class Names(Dataset):
    """Uses the list of files as a worker does, but reads no image."""

    def __init__(self, samples: SeededSamples):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> str:
        return self.samples.path(key)


def list_files(count: int, folder: str, workers: int = 2) -> list[str]:
    """Iterate over a list of ``count`` files in workers without reading images; return what grows."""
    path = Path(folder, 'list.txt')
    path.write_text(''.join(f'n{k % 1000:08d}/image_{k:08d}.jpg\n' for k in range(count)))
    samples = SeededSamples(ImageFiles(folder, list_file=str(path), check_files='none', pipeline=[]))
    samples.full_init()
    held = samples.dataset.data_bytes.nbytes + samples.dataset.data_address.nbytes
    loader = DataLoader(
        Names(samples),
        batch_size=100,
        num_workers=workers,
        collate_fn=len,
        persistent_workers=True,
        sampler=torch.randperm(count).tolist(),
    )
    batches = iter(loader)
    memory = []
    for number, _ in enumerate(batches):
        if number % (len(loader) // 4) == 0:
            memory.append([private_mb(worker.pid) for worker in batches._workers])
    growth = max(np.array(memory[-1]) - np.array(memory[0]))
    print(f'{count:,} files: {held / 2**20:.0f} MB in one buffer, of which a worker copies {growth:.1f} MB')
    return ['workers copy the list of files'] if growth > 0.2 * held / 2**20 + 5 else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=20_000)
    parser.add_argument('--files', type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        faults = train(args.steps, folder) if args.steps else []
    with tempfile.TemporaryDirectory() as folder:
        faults += list_files(args.files, folder) if args.files else []
    print('; '.join(faults) or 'nothing grows')
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
