#!/usr/bin/env python3
"""Measure where the time of a small pretraining step on a CPU goes, and how much of it is computation.

    benchmarks/demo_step.py                                     # the pretraining configs of `make demo`
    benchmarks/demo_step.py configs/pretrain/bootmae_demo.py --steps 600 --label 'before'

Runs of `tools/train.py`, in one thread and without workers, as in the demo. Times are those of the CPU: other processes
beside this one change them little. Turns of the run alternate with turns of the bare step (forward, losses, backward,
optimizer, momentum encoder, on one batch again and again), whose ratio is the share of time that a faster loop could
not save. Then each part of the run is timed by itself. Prints a table and adds a row for each config to
benchmarks/results/demo_step.csv.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from unittest import mock

import measure  # first, since it adds the package to sys.path
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.models import SelfSupDataPreprocessor
from torch.utils.data.dataloader import _BaseDataLoaderIter

from bootmae.commands.train import train as run_training
from bootmae.config.load import load_config
from bootmae.data import samples
from bootmae.engine.runner import loops
from bootmae.models.bootmae import BootMAE
from bootmae.models.masking import BlockMasking

CONFIGS = tuple(
    f'configs/pretrain/{name}.py' for name in ('bootmae_demo', 'bootmae_demo_digits', 'mae_demo', 'mae_demo_digits')
)
PARTS = {  # part: (class or module, function name); the time of a part excludes parts within it
    'arithmetic': [(BaseModel, '_run_forward'), (OptimWrapper, 'update_params'), (BootMAE, 'update_momentum')],
    'loader': [(_BaseDataLoaderIter, '__next__')],
    'masks': [(BlockMasking, 'draw_ids_shuffle')],
    'seeds': [(samples, 'seed_generators'), (loops, 'seed_step')],
    'preprocessor': [(SelfSupDataPreprocessor, 'forward')],
    'hooks': [(Runner, 'call_hook')],
}
clock = time.process_time


class Done(Exception):
    """Ends a timed run."""


class Stopwatch:
    """Measures the seconds within functions, without the time of other timed functions that they call."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    def wrap(self, function: Callable, part: str) -> Callable:
        """Wrap a function so that its own time is added to a part."""

        def timed(*args, **kwargs):
            begin = clock()
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                total = clock() - begin
                self.seconds[part] += total - self.inner.pop()
                self.inner[-1] += total

        return timed

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Time all parts inside the context."""
        with ExitStack() as stack:
            for part, places in PARTS.items():
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, self.wrap(getattr(owner, name), part)))
            yield


def bare_step(runner, batch: dict) -> Callable[[], None]:
    """Return a function that runs one training step on a batch and nothing else."""
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    data = model.data_preprocessor(batch, True)

    def step() -> None:
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(model, 'update_momentum'):
            model.update_momentum(0.999)

    return step


class Turns:
    """Measures the seconds of turns of the run and, if ``compare``, of as many bare steps after each turn."""

    def __init__(self, count: int, size: int, compare: bool):
        self.count, self.size, self.compare = count, size, compare
        self.loop: list[float] = []
        self.bare: list[float] = []
        self.start = None

    def tick(self, runner, batch: dict) -> None:
        """Call this at the end of each iteration; the first turn is a warm-up.

        Raises:
            Done: after the last turn.
        """
        if (runner.iter + 1) % self.size:
            return
        if self.start is not None:
            self.loop.append(clock() - self.start)
        if self.compare:
            step = bare_step(runner, batch)
            begin = clock()
            for _ in range(self.size):
                step()
            if self.start is not None:
                self.bare.append(clock() - begin)
        if len(self.loop) >= self.count:
            raise Done
        self.start = clock()


TURNS: Turns | None = None  # of the current run, which builds its hooks from a config


@HOOKS.register_module(force=True)
class TurnsHook(Hook):
    """Ends turns. It is the last hook in the config, so it runs after all others."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        try:
            TURNS.tick(runner, data_batch)
        except Done:
            runner.visualizer.close()  # its threads write to a temporary folder
            raise


def train(config: str, turns: Turns) -> None:
    """Run a config in a temporary folder until its turns are over."""
    global TURNS
    TURNS = turns
    hooks = load_config(config).get('custom_hooks', [])
    options = {
        'train_cfg.max_epochs': 2000,
        'default_hooks.checkpoint.interval': 10**6,
        'log_level': 'ERROR',
        'experiment_name': f'demo_step_{time.time_ns()}',
        'custom_hooks': [*hooks, dict(type='TurnsHook')],
    }
    with suppress(Done), tempfile.TemporaryDirectory() as folder:
        run_training(config, folder, options)


def measure_config(config: str, steps: int, size: int = 6) -> dict:
    """Measure a config and return a row: ``size`` iterations per turn, ``steps`` in total."""
    count = max(2, steps // (2 * size))
    turns, parts, watch = Turns(count, size, compare=True), Turns(count, size, compare=False), Stopwatch()
    train(config, turns)
    with watch.attached():
        train(config, parts)
    batch = load_config(config).train_dataloader.batch_size
    loop, bare = (statistics.median(times) / size for times in (turns.loop, turns.bare))
    ratio = statistics.median(b / a for a, b in zip(turns.loop, turns.bare, strict=True))
    steps = (count + 1) * size  # the warm-up was timed, too
    timed = {part: seconds / steps for part, seconds in watch.seconds.items()}
    total = statistics.mean(parts.loop) / size
    timed['rest'] = max(0.0, total - sum(timed.values()))
    return dict(
        config=config,
        batch=batch,
        steps=2 * count * size,
        images_per_s_loop=batch / loop,
        images_per_s_bare=batch / bare,
        ratio=ratio,
        ms_per_step=1e3 * loop,
        **{f'{part}_ms': 1e3 * timed.get(part, 0.0) for part in (*PARTS, 'rest')},
    )


def report(row: dict) -> str:
    """Format a row."""
    parts = [name for name in row if name.endswith('_ms')]
    total = sum(row[name] for name in parts)
    lines = [
        f'{row["config"]}, batch {row["batch"]}, {row["steps"]} steps, {row["device"]}, {row["threads"]} thread',
        f'images per second of the CPU: {row["images_per_s_loop"]:.0f} in the loop, '
        f'{row["images_per_s_bare"]:.0f} in the bare step: {100 * row["ratio"]:.1f} %',
    ]
    return '\n'.join(
        lines
        + [f'  {name.removesuffix("_ms"):14}{row[name]:8.2f} ms {100 * row[name] / total:6.1f} %' for name in parts]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', default=CONFIGS)
    parser.add_argument('--steps', type=int, default=240, help='number of steps per config')
    parser.add_argument('--label', default='', help='label of the row')
    parser.add_argument('--folder', help='folder of the table (default: benchmarks/results)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    for config in args.configs:
        row = measure.facts('cpu') | dict(label=args.label) | measure_config(config, args.steps)
        print(report(row), flush=True)
        measure.add_row('demo_step', row, args.folder)


if __name__ == '__main__':
    main()
