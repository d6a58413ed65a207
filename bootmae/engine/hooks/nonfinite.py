"""Records steps with NaN or Inf in losses or gradients, and stops a run after several in a row.

The optimizer wrapper skips such a step on the device (:class:`bootmae.engine.optimizers.wrappers.Guarded`), and the
hook learns of it one step later. It writes a file to ``nonfinite/`` in the work directory, from which
``tools/replay.py`` repeats the step.

The momentum encoder is still updated after a skipped step, towards the unchanged, finite online encoder.
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
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...checkpoints.finite import named, nonfinite
from ...data.tar import readable
from ...distributed.exits import NonFiniteError
from ...files import write_file
from ...text import count_of
from ..optimizers.wrappers import Guarded
from ..runner.records import optional
from ..unwrap import bare_model

FOLDER = 'nonfinite'


class Readback:
    """An asynchronous copy of values from a device to the host; only ``read`` waits for it."""

    def __init__(self, values: torch.Tensor):
        self.host = values.to('cpu', non_blocking=True)  # from a GPU into pinned memory
        self.event = torch.cuda.Event() if values.is_cuda else None
        if self.event:
            self.event.record()

    def read(self) -> list[float]:
        if self.event:
            self.event.synchronize()
        return self.host.tolist()


class Step:
    """The batches and values of one optimizer step, until it is known whether the step was finite."""

    def __init__(self):
        self.batches: list[dict] = []  # one for each accumulated iteration
        self.samples: list = []  # data samples of each batch
        self.values: list[torch.Tensor] = []  # of each batch: the loss of this process, then the logged values
        self.buffers: dict[str, float] = {}  # of the model, see unsaved_scalars
        self.readback: Readback | None = None

    def add(self, iteration: int, epoch: int, data_batch, loss: torch.Tensor, outputs: dict | None) -> None:
        """Add one accumulated iteration."""
        logged = {
            name: value
            for name, value in (outputs or {}).items()
            if isinstance(value, torch.Tensor) and value.numel() == 1
        }
        self.batches.append(dict(iteration=iteration, epoch=epoch, names=list(logged)))
        self.samples.append(data_batch.get('data_samples') if isinstance(data_batch, dict) else None)
        self.values += [value.detach().float().reshape(()) for value in (loss, *logged.values())]

    def send(self, nonfinite: torch.Tensor, buffers: dict[str, torch.Tensor]) -> None:
        """Start the copy of all values to the host."""
        self.buffers = dict.fromkeys(buffers)
        numbers = [value.float().reshape(()) for value in (nonfinite, *buffers.values())]
        self.readback, self.values = Readback(torch.stack(numbers + self.values)), []

    def read(self) -> bool:
        """Return whether the step was not finite; if so, fill the attributes with its values and file names."""
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
    """Return the path of a data sample's image, or its index in the data set if it has no file."""
    path = sample.get('img_path')
    return readable(str(path)) if path else f'sample {sample.get("sample_idx", "?")}'


def check_start(runner: Runner) -> None:
    """Raise a ValueError if weights or buffers are not finite before the first step, where no setting would help."""
    state = bare_model(runner).state_dict()
    if bad := nonfinite(state):
        raise ValueError(
            f'the weights that the run starts from are not finite (NaN or infinity) in {len(bad)} of {len(state)} '
            f'tensors: {named(bad)}. Give other start weights: --init, load_from or init_cfg of the config'
        )


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Return the buffers that a forward pass writes, those of batch normalization."""
    return [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers(False)]


def unsaved_scalars(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the scalar buffers that no checkpoint holds, such as BootMAE's feature weight of the epoch."""
    saved = model.state_dict()
    return {name: value for name, value in model.named_buffers() if value.numel() == 1 and name not in saved}


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Records every skipped step, and ends the run after several in a row.

    Each process writes ``nonfinite/step_<iteration>_rank<rank>.json`` for a bad step; iterations count from 0. Batch
    normalization gets back its statistics from before the step.

    The flag of a bad step is the same in all processes. It is read one step later, so that no step waits; after a bad
    step it is read at once, so that the run ends with the weights that the bad steps started from.

    Args:
        patience: number of bad steps in a row that end the run.

    Raises:
        ValueError: before the first step, if the weights are not finite.
        NonFiniteError: after ``patience`` bad steps in a row, with the weights saved in ``nonfinite/``.
    """

    priority = 80  # between LOW, when losses are averaged and schedules moved, and VERY_LOW, when weights are saved

    def __init__(self, patience: int = 3):
        if patience < 1:
            raise ValueError(f'NonFiniteHook patience={patience}: give at least 1')
        self.patience = patience
        self.row: list[int] = []  # iterations of the current bad steps in a row
        self.checkpoint: str | None = None  # the newest one before the first of them
        self.current = Step()
        self.pending: Step | None = None
        self.statistics: list[torch.Tensor] = []
        self.buffers: dict[str, torch.Tensor] = {}
        self.saved: list[torch.Tensor] = []

    def before_train(self, runner: Runner) -> None:
        check_start(runner)
        self.active = isinstance(runner.optim_wrapper, Guarded)
        if not self.active:
            print_log(
                f'{type(runner.optim_wrapper).__name__} does not skip steps that are not finite: use '
                'GuardedOptimWrapper, AutocastOptimWrapper or GuardedAmpOptimWrapper',
                'current',
                logging.WARNING,
            )
            return
        self.statistics, self.buffers = running_statistics(runner.model), unsaved_scalars(bare_model(runner))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if self.active and self.statistics and not self.current.batches:
            self.saved = [buffer.clone() for buffer in self.statistics]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
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
        self._check(runner, before)
        if self.row:  # after a bad step, make no further one before this one is known to be good
            self._check_pending(runner)

    def after_train(self, runner: Runner) -> None:
        if self.active:
            self._check_pending(runner)

    def _check_pending(self, runner: Runner) -> None:
        step, self.pending = self.pending, None
        self._check(runner, step)

    def _check(self, runner: Runner, step: Step | None) -> None:
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

    def _stop(self, runner: Runner) -> None:
        """Save the weights, which no bad step has changed, and end the run."""
        weights = weights_path(runner.work_dir, self.row[0])
        try:
            runner.save_checkpoint(str(weights.parent), weights.name, by_epoch=False)
        except OSError as problem:  # such as a full disk; the other processes wait below
            print_log(f'{weights} was not saved: {problem}', 'current', logging.ERROR)
        dist.barrier()  # the end of a process makes the launcher stop the others, so wait for rank 0
        iterations = ', '.join(map(str, self.row))
        raise NonFiniteError(
            f'loss or gradients were not finite {count_of(len(self.row), "time")} in a row, in '
            f'iteration{"s" if len(self.row) > 1 else ""} {iterations}. The weights before them are in {weights}. '
            f'Find the first bad layer: tools/replay.py {dump_path(runner.work_dir, self.row[-1], 0)}. '
            'Then continue with --resume --resume-changed and a lower optim_wrapper.optimizer.lr, '
            'model.fp32_decoder=True (BootMAE) or optim_wrapper.type=GuardedOptimWrapper (float32); see '
            'docs/reliability.md'
        )


def dump_path(work_dir: str | Path, iteration: int, rank: int | str) -> Path:
    """Return the file that describes a bad step of one process."""
    return Path(work_dir, FOLDER, f'step_{iteration}_rank{rank}.json')


def weights_path(work_dir: str | Path, first: int) -> Path:
    """Return the file for the weights of a stopped run, as they were before its first bad step.

    With ``patience=1`` they are one step newer. ``--resume`` does not look for this name.
    """
    return Path(work_dir, FOLDER, f'stopped_{first}.pth')


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the checkpoint of a run that was written last, if it still exists."""
    path = find_latest_checkpoint(str(work_dir))
    return path if path and os.path.isfile(path) else None


def write_dump(runner: Runner, step: Step, first: int, checkpoint: str | None) -> None:
    """Write what ``tools/replay.py`` needs to repeat this process's part of an optimizer step.

    Args:
        runner: the run.
        step: the bad step, after :meth:`Step.read`.
        first: iteration of the first bad step in a row.
        checkpoint: the newest checkpoint before that step.
    """
    last = step.batches[-1]
    path = dump_path(runner.work_dir, last['iteration'], dist.get_rank())
    config = path.with_name('config.py')
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
    with optional(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if dist.is_main_process():
            write_file(config, lambda file: file.write_text(runner.cfg.pretty_text, encoding='utf-8'))
        write_file(path, lambda file: file.write_text(json.dumps(content, indent=1)))


def run_seed(runner: Runner) -> int:
    """Return the seed of samples and steps: that of rank 0, which the training loop broadcasts."""
    return getattr(runner.train_loop, 'seed', runner.seed)
