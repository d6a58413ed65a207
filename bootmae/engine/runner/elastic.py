"""Resumes a run on another number of processes, or with another optimization."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.logging import print_log
from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner

from ..optimizers.schedule import WarmupCosineLR

STATE_FORM = ('fused', 'foreach', 'capturable', 'differentiable', 'amsgrad')  # must fit the state that was loaded


def fit_processes(content: dict, runner: Runner) -> None:
    """Convert a checkpoint's counters from its gradient accumulation to that of the run; changes ``content`` in place.

    The global batch is the same (checked before), but an iteration, ``1 / accumulation`` of an optimizer step, is not.

    Raises:
        ValueError: for a learning rate schedule that cannot be converted.
    """
    meta, new = content['meta'], runner.optim_wrapper._accumulative_counts
    old = meta.get('accumulation', meta.get('bootmae', {}).get('accumulation', new))  # older files: the latter
    if old == new:
        return
    before = meta['iter']
    meta['iter'] = before // old * new  # checkpoints are written after whole steps
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    for scheduler, state in zip(schedulers, content.get('param_schedulers', [])):
        if state['by_epoch']:
            continue
        if not isinstance(scheduler, WarmupCosineLR):
            raise ValueError(
                f'this run has accumulation {new}, the checkpoint has accumulation {old}, and '
                f'{type(scheduler).__name__} cannot be converted: resume with the number of processes and the '
                'batch_size of the original run'
            )
        for count in ('last_step', '_global_step'):
            state[count] += meta['iter'] - before


@contextmanager
def config_schedule(runner: Runner) -> Iterator[None]:
    """Keep optimizer settings and schedules of the config while a checkpoint is loaded in the block.

    A checkpoint restores the length and the shape of mmengine's schedules, and each of their values follows from the
    previous one. So after the block those of the config are replayed from the first step to the position of the
    checkpoint, which takes about 20 s for a million steps.

    A schedule that depends on earlier validations cannot be replayed. It stays that of the checkpoint, with a warning.

    Raises:
        ValueError: for other settings of the optimizer than those of the checkpoint together with such a schedule.
    """
    schedulers = [item for item in runner.param_schedulers or [] if isinstance(item, _ParamScheduler)]
    groups = [_settings(group, runner) for group in runner.optim_wrapper.param_groups]
    states = [dict(vars(scheduler)) for scheduler in schedulers]
    yield
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False):
            _check_unchanged(groups, runner.optim_wrapper.param_groups, type(scheduler).__name__)
            return
    for group, settings in zip(runner.optim_wrapper.param_groups, groups):
        group.update(settings)
    for scheduler, state in zip(schedulers, states):
        vars(scheduler).clear()
        vars(scheduler).update(state)
    _replay(schedulers, runner)


def _settings(group: dict, runner: Runner) -> dict:
    """Return the settings of a parameter group without its state and what must fit the state of the optimizer."""
    optimizer = runner.optim_wrapper.optimizer
    known = {*inspect.signature(type(optimizer)).parameters, *runner.cfg.optim_wrapper.get('optimizer', ())}
    state = set(optimizer.defaults) - known  # such as d of D-Adaptation
    return {key: value for key, value in group.items() if key not in ('params', *STATE_FORM, *state)}


def _check_unchanged(settings: Sequence[dict], groups: Sequence[dict], schedule: str) -> None:
    """Warn that a schedule is that of the checkpoint; ValueError if the optimizer of the config is another one."""
    for wanted, group in zip(settings, groups):
        for key in wanted.keys() & group.keys() - {'lr'}:  # the schedule changes lr, and not initial_lr
            if wanted[key] != group[key]:
                raise ValueError(
                    f'{schedule} depends on earlier validations, so --resume-changed cannot give its learning rates '
                    f'with {key}={wanted[key]} instead of {group[key]}: resume with the optimizer of the checkpoint, '
                    'or use another param_scheduler'
                )
    print_log(
        f'{schedule} depends on earlier validations: learning rate and param_scheduler are those of the checkpoint, '
        'also if the config has others',
        'current',
        logging.WARNING,
    )


def _replay(schedulers: Sequence[_ParamScheduler], runner: Runner) -> None:
    """Step new schedules, in the order of mmengine's hook, to the epoch and iteration of the run."""
    by_epoch, by_step = ([item for item in schedulers if item.by_epoch == kind] for kind in (True, False))
    runner.optim_wrapper._global_step = 0  # else they warn that the optimizer has made no step
    done = 0
    for epoch in range(runner.epoch + 1):
        end = (epoch + 1) * len(runner.train_dataloader) if epoch < runner.epoch else runner.iter
        for _ in range(end - done if by_step else 0):
            for scheduler in by_step:
                scheduler.step()
        done = end
        for scheduler in by_epoch if epoch < runner.epoch else ():
            scheduler.step()
