"""Losses and gradients that are not finite: noticed without waiting, written down, and a way on.

The optimizer wrapper has skipped such a step on the device (:class:`bootmae.engine.optimizers.wrappers.Guarded`). The
hook here learns of it one step later. What it writes lies in ``nonfinite/`` of the work directory; ``tools/replay.py``
repeats the step from it.

The momentum encoder still moves after a skipped step: towards the online encoder, which is finite and unchanged.
"""

import json
import logging
import math
import os
from pathlib import Path

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import find_latest_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...data.tar import readable
from ...distributed.exits import NonFiniteError
from ..optimizers.wrappers import Guarded
from ..unwrap import bare_model

FOLDER = 'nonfinite'


class Readback:
    """Numbers on their way from a device to the host, without waiting for them until they are read."""

    def __init__(self, values: torch.Tensor):
        self.host = values.to('cpu', non_blocking=True)  # into pinned memory, if it comes from a GPU
        self.event = torch.cuda.Event() if values.is_cuda else None
        if self.event:
            self.event.record()

    def read(self) -> list[float]:
        if self.event:
            self.event.synchronize()
        return self.host.tolist()


class Step:
    """What is known of an optimizer step until it is judged: its batches, and its numbers on their way to the host."""

    def __init__(self):
        self.batches: list[dict] = []  # one for each accumulated iteration
        self.samples: list = []  # what the loader gave for each of them
        self.values: list[torch.Tensor] = []  # of each: the loss of this process, then what is logged
        self.buffers: dict[str, float] = {}  # of the model; see single_buffers
        self.readback: Readback | None = None

    def add(self, iteration: int, epoch: int, data_batch, loss: torch.Tensor, outputs: dict | None) -> None:
        logged = {
            name: value
            for name, value in (outputs or {}).items()
            if isinstance(value, torch.Tensor) and value.numel() == 1
        }
        self.batches.append(dict(iteration=iteration, epoch=epoch, names=list(logged)))
        self.samples.append(data_batch.get('data_samples') if isinstance(data_batch, dict) else None)
        self.values += [value.detach().float().reshape(()) for value in (loss, *logged.values())]

    def send(self, nonfinite: torch.Tensor, buffers: dict[str, torch.Tensor]) -> None:
        self.buffers = dict.fromkeys(buffers)
        numbers = [value.float().reshape(()) for value in (nonfinite, *buffers.values())]
        self.readback, self.values = Readback(torch.stack(numbers + self.values)), []

    def read(self) -> bool:
        """Whether the step was not finite; its numbers and the names of its files are then in its attributes."""
        flag, *values = self.readback.read()
        if flag:
            self.buffers = dict(zip(self.buffers, values))
            del values[: len(self.buffers)]
            for batch, samples in zip(self.batches, self.samples):
                batch['loss'], *logged = values[: 1 + len(batch['names'])]
                del values[: 1 + len(batch['names'])]
                batch['logged'] = dict(zip(batch.pop('names'), logged))
                batch['files'] = [sample_name(sample) for sample in samples or ()]
        return bool(flag)


def sample_name(sample) -> str:
    """The path of a data sample's image, or its number in the data set where there is no file."""
    path = sample.get('img_path')
    return readable(str(path)) if path else f'sample {sample.get("sample_idx", "?")}'


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Buffers that a forward pass writes into: those of batch normalization."""
    return [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers(False)]


def single_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Numbers that a model keeps outside its checkpoint, such as BootMAE's feature weight of the epoch."""
    saved = model.state_dict()
    return {name: value for name, value in model.named_buffers() if value.numel() == 1 and name not in saved}


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Writes down every step that was skipped because its loss or gradients were not finite; ends the run at several.

    The flag is the same in every process, and each reads it one step later, so that nothing waits; after a bad step at
    once, so that the run ends with the weights that the bad steps met. Batch normalization gets back the statistics of
    before a bad step.

    For each bad step every process writes ``nonfinite/step_<iteration>_rank<rank>.json``; iterations count from 0.

    Args:
        patience: so many bad steps in a row end the run.
        reseed: added to the seed of the checkpoint that a run is resumed from, to go another way; see :func:`ladder`.

    Raises:
        NonFiniteError: after ``patience`` bad steps in a row, with the weights saved in ``nonfinite/``.
    """

    priority = 80  # between LOW, when losses are averaged and schedules moved, and VERY_LOW, when weights are saved

    def __init__(self, patience: int = 3, reseed: int = 0):
        if patience < 1:
            raise ValueError(f'NonFiniteHook: patience={patience} must be at least 1')
        self.patience, self.reseed = patience, reseed
        self.row: list[int] = []  # iterations of the bad steps in a row
        self.checkpoint: str | None = None  # newest one when the row began
        self.current = Step()
        self.pending: Step | None = None
        self.statistics: list[torch.Tensor] = []
        self.buffers: dict[str, torch.Tensor] = {}
        self.saved: list[torch.Tensor] = []

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.reseed and runner._resume and checkpoint['meta'].get('seed') is not None:
            checkpoint['meta']['seed'] += self.reseed

    def before_train(self, runner) -> None:
        self.active = isinstance(runner.optim_wrapper, Guarded)
        if not self.active:
            print_log(
                f'{type(runner.optim_wrapper).__name__} does not hold back losses that are not finite: use '
                'GuardedOptimWrapper, AutocastOptimWrapper or GuardedAmpOptimWrapper',
                'current',
                logging.WARNING,
            )
            return
        self.statistics, self.buffers = running_statistics(runner.model), single_buffers(bare_model(runner))

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.active and self.statistics and not self.current.batches:
            self.saved = [buffer.clone() for buffer in self.statistics]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.active:
            return
        wrapper = runner.optim_wrapper
        self.current.add(runner.iter, runner.epoch, data_batch, wrapper.loss, outputs)
        if not wrapper.should_update():
            return
        self.current.send(wrapper.nonfinite, self.buffers)
        for buffer, saved in zip(self.statistics, self.saved):
            buffer.copy_(torch.where(wrapper.nonfinite > 0, saved, buffer))
        before, self.pending, self.current = self.pending, self.current, Step()
        self._judge(runner, before)
        if self.row:  # in trouble: no further step before this one is known to be good
            self._judge_pending(runner)

    def after_train(self, runner) -> None:
        if self.active:
            self._judge_pending(runner)

    def _judge_pending(self, runner) -> None:
        step, self.pending = self.pending, None
        self._judge(runner, step)

    def _judge(self, runner, step: Step | None) -> None:
        if step is None:
            return
        if not step.read():
            self.row = []
            return
        if not self.row:
            self.checkpoint = newest_checkpoint(runner.work_dir)
        self.row.append(step.batches[-1]['iteration'])
        write_dump(runner, step, self.row[0], self.checkpoint)
        bad = [all(math.isfinite(batch['loss']) for batch in step.batches)]
        ranks = [rank for rank, (finite,) in enumerate(dist.all_gather_object(bad)) if not finite]
        what = f'the loss of rank {", ".join(map(str, ranks))} is' if ranks else 'losses are finite, gradients are'
        print_log(
            f'iteration {self.row[-1]}: {what} not finite. The step was skipped, {len(self.row)} in a row. '
            f'Its files: {dump_path(runner.work_dir, self.row[-1], "*")}',
            'current',
            logging.WARNING,
        )
        if len(self.row) >= self.patience:
            self._stop(runner)

    def _stop(self, runner) -> None:
        """Save the weights, which no bad step has touched, and end the run."""
        weights = weights_path(runner.work_dir, self.row[0])
        try:
            runner.save_checkpoint(str(weights.parent), weights.name, by_epoch=False)
        except OSError as problem:  # such as a full disk; the other processes must not wait for this one
            print_log(f'{weights} was not saved: {problem}', 'current', logging.ERROR)
        gone = self.checkpoint and not os.path.isfile(self.checkpoint)  # a newer one has replaced it: finite as well
        places = [newest_checkpoint(runner.work_dir) if gone else self.checkpoint]
        dist.broadcast_object_list(places)  # processes may have looked while one of them was writing
        iterations = ', '.join(map(str, self.row))
        error = NonFiniteError(
            f'loss or gradients were not finite {len(self.row)} times in a row, in iterations {iterations}. No weight '
            f'was touched by them: {weights}. See in which layer it begins: '
            f'tools/replay.py {dump_path(runner.work_dir, self.row[-1], 0)}. Go on with --resume and a lower learning '
            'rate, clipping or float32, or let the run try by itself: nonfinite_ladder (docs/reliability.md)'
        )
        error.checkpoint = places[0]
        raise error


def dump_path(work_dir: str | Path, iteration: int, rank: int | str) -> Path:
    return Path(work_dir, FOLDER, f'step_{iteration}_rank{rank}.json')


def weights_path(work_dir: str | Path, first: int) -> Path:
    """Weights of a run that was stopped by a row of bad steps, as the first of them met them (a step later, if one
    bad step was enough).

    Of a name, and in a folder, that a run is not resumed from by itself.
    """
    return Path(work_dir, FOLDER, f'stopped_{first}.pth')


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint of a run that was written last, if it is still there."""
    path = find_latest_checkpoint(str(work_dir))
    return path if path and os.path.isfile(path) else None


def write_dump(runner, step: Step, first: int, checkpoint: str | None) -> Path:
    """Write down what ``tools/replay.py`` needs to repeat this process's share of an optimizer step.

    Args:
        runner: of the run.
        step: the bad step, read.
        first: iteration of the first bad step in the row.
        checkpoint: newest one when that was noticed.
    """
    last = step.batches[-1]
    path = dump_path(runner.work_dir, last['iteration'], dist.get_rank())
    path.parent.mkdir(parents=True, exist_ok=True)
    config = path.with_name('config.py')
    if dist.is_main_process():
        config.write_text(runner.cfg.pretty_text)
    content = dict(
        iteration=last['iteration'],
        epoch=last['epoch'],
        seed=run_seed(runner),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        batch_size=runner.cfg.train_dataloader.get('batch_size'),
        accumulation=runner.optim_wrapper._accumulative_counts,
        wrapper=type(runner.optim_wrapper).__name__,
        checkpoint=checkpoint,
        weights=str(weights_path(runner.work_dir, first)),
        config=str(config),
        buffers=step.buffers,
        batches=step.batches,
    )
    path.write_text(json.dumps(content, indent=1))
    return path


def run_seed(runner) -> int:
    """The seed that samples and steps are drawn from: rank 0's, which the training loop has spread."""
    return getattr(runner.train_loop, 'seed', runner.seed)
