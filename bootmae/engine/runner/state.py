"""The content of a run's checkpoint, and the facts that must not change when it resumes."""

import time

import mmengine
import torch
from mmengine.logging import MessageHub
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, weights_to_cpu
from mmengine.utils import apply_to, get_git_hash

HISTORY = 256  # minimum number of values that are kept of each logged scalar


def history_length(runner: Runner) -> int:
    """Return how many values of each logged scalar to keep: all that the log processor may average."""
    windows = [item.get('window_size') for item in runner.log_processor.custom_cfg]
    if 'global' in windows:
        return 1_000_000  # mmengine's own limit
    # Loops that are not built yet are configs without a loader.
    loaders = [getattr(loop, 'dataloader', ()) for loop in (runner._val_loop, runner._train_loop)]
    lengths = [len(loader) for loader in (loaders if 'epoch' in windows else loaders[:1])]
    numbers = [size for size in (*windows, runner.log_processor.window_size) if isinstance(size, int)]
    return max(HISTORY, *lengths, *numbers)


def cap_histories(hub: MessageHub, length: int) -> None:
    """Keep only the last values of each logged scalar.

    mmengine keeps a million, copies them in each step, and saves them in each checkpoint.
    """
    for buffer in hub.log_scalars.values():
        buffer.max_length = length
        if len(buffer._log_history) > length:
            buffer._log_history = buffer._log_history[-length:].copy()
            buffer._count_history = buffer._count_history[-length:].copy()


def resume_signature(runner: Runner) -> dict:
    """Return the facts that must not change when a run resumes; none depends on the number of processes."""
    wrapper, loop = runner.optim_wrapper, runner.train_loop
    accumulation = getattr(wrapper, '_accumulative_counts', 1)
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    length = dict(max_epochs=loop.max_epochs) if by_epoch else dict(max_steps=loop.max_iters // accumulation)
    defaults = getattr(getattr(wrapper, 'optimizer', None), 'defaults', {})
    return (
        dict(
            loop='epochs' if by_epoch else 'iterations',
            global_batch=runner.cfg.train_dataloader.get('batch_size', 1) * runner.world_size * accumulation,
            train_samples=len(loop.dataloader.dataset),
            optimizer=type(getattr(wrapper, 'optimizer', wrapper)).__name__,
            lr=defaults.get('lr'),
            weight_decay=defaults.get('weight_decay'),
        )
        | length
    )


def run_content(runner: Runner, meta: dict, save_optimizer: bool = True, save_param_scheduler: bool = True) -> dict:
    """Return what mmengine's ``Runner.save_checkpoint`` writes, with its keys, without copying CPU tensors.

    ``meta.accumulation`` is added, from which :func:`bootmae.engine.runner.elastic.fit_processes` converts counters.
    """
    meta = meta | dict(
        cfg=runner.cfg.pretty_text,
        seed=runner.seed,
        experiment_name=runner.experiment_name,
        time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
        mmengine_version=mmengine.__version__ + get_git_hash(),
        accumulation=getattr(runner.optim_wrapper, '_accumulative_counts', 1),
    )
    if hasattr(runner.train_dataloader.dataset, 'metainfo'):
        meta['dataset_meta'] = runner.train_dataloader.dataset.metainfo
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    content = dict(
        meta=meta, state_dict=weights_to_cpu(model.state_dict()), message_hub=_on_cpu(runner.message_hub.state_dict())
    )
    if save_optimizer:
        content['optimizer'] = _on_cpu(runner.optim_wrapper.state_dict())
    if save_param_scheduler and runner.param_schedulers is not None:
        schedulers = runner.param_schedulers
        content['param_schedulers'] = (
            {name: [item.state_dict() for item in items] for name, items in schedulers.items()}
            if isinstance(schedulers, dict)
            else [item.state_dict() for item in schedulers]
        )
    return content


def _on_cpu(state: dict) -> dict:
    return apply_to(state, lambda value: isinstance(value, torch.Tensor), lambda value: value.detach().cpu())
