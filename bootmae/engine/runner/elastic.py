"""Resumes a run on another number of processes, or with other learning rates."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.runner import Runner

from ..optimizers.schedule import WarmupCosineLR


def fit_processes(content: dict, runner: Runner) -> None:
    """Convert a checkpoint's counters from its gradient accumulation to that of the run; changes ``content`` in place.

    The global batch is the same (checked before), but an iteration, ``1 / accumulation`` of an optimizer step, is not.

    Raises:
        ValueError: for a learning rate schedule that cannot be converted.
    """
    meta, new = content['meta'], runner.optim_wrapper._accumulative_counts
    old = meta.get('bootmae', {}).get('accumulation', new)
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
def config_rates(runner: Runner) -> Iterator[None]:
    """Keep the learning rates and weight decays of the config while a checkpoint is loaded in the block."""
    optimizer, schedulers = runner.optim_wrapper.optimizer, runner.param_schedulers or []
    wanted = [(group.get('initial_lr', group['lr']), group['weight_decay']) for group in optimizer.param_groups]
    yield
    for group, (rate, decay) in zip(optimizer.param_groups, wanted):
        group['lr'] *= rate / group.get('initial_lr', rate)  # keeps the position in the schedule
        group.update(initial_lr=rate, weight_decay=decay)
    for scheduler in schedulers if isinstance(schedulers, list) else []:
        if scheduler.param_name == 'lr':
            scheduler.base_values = [rate for rate, _ in wanted]
