"""Defaults of every training run, whatever its config: exact resuming and guards against lost work."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

SAMPLERS = dict(DefaultSampler=False, InfiniteSampler=True)  # replaced by StreamSampler; whether they are endless
LOOPS = dict(EpochBasedTrainLoop='EpochLoop', IterBasedTrainLoop='IterLoop')
WRAPPERS = dict(OptimWrapper='GuardedOptimWrapper', AmpOptimWrapper='GuardedAmpOptimWrapper')
HOOKS = dict(
    runtime_info='AsyncLoggingHook',
    preemption='PreemptionHook',
    bad_images='BadImagesHook',
    nonfinite='NonFiniteHook',
    heartbeat='HeartbeatHook',
    collapse='CollapseMonitorHook',
)
MMENGINE_HOOKS = dict(  # those that mmengine adds itself; None leaves one out
    runtime_info='RuntimeInfoHook',
    timer='IterTimerHook',
    sampler_seed='DistSamplerSeedHook',
    logger='LoggerHook',
    param_scheduler='ParamSchedulerHook',
    checkpoint='CheckpointHook',
)
TRACKERS = dict(wandb='WandbVisBackend', mlflow='MLflowVisBackend')


def apply_run_defaults(cfg: Config) -> None:
    """Apply the defaults of every training run, in place. Call it after the accumulation is known."""
    guard_optimizer(cfg)
    add_hooks(cfg)
    add_trackers(cfg)
    make_resumable(cfg)


def guard_optimizer(cfg: Config) -> None:
    """Replace mmengine's optimizer wrapper by one that skips steps that are not finite.

    Changes ``optim_wrapper.type``.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    cfg.optim_wrapper['type'] = WRAPPERS.get(kind, kind)


def add_hooks(cfg: Config) -> None:
    """Add the hooks that guard a run, and replace mmengine's checkpoint hook.

    Changes ``default_hooks``. Hooks that are there keep their arguments; ``default_hooks.NAME=None`` leaves one out.
    """
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks  # the config holds a copy of what setdefault got
    for name, hook in HOOKS.items():
        if hooks.setdefault(name, dict(type=hook)) is not None:
            hooks[name].setdefault('type', hook)
    checkpoint = hooks.setdefault('checkpoint', dict(interval=1))
    if checkpoint and checkpoint.get('type', 'CheckpointHook') == 'CheckpointHook':
        checkpoint['type'] = 'SafeCheckpointHook'
    complete_hooks(cfg)


def complete_hooks(cfg: Config) -> None:
    """Give mmengine's hooks their type, and leave out hooks that are None: mmengine accepts that for its own alone.

    Changes ``default_hooks``.
    """
    hooks = cfg.get('default_hooks') or {}
    for name, hook in list(hooks.items()):
        if hook is None and name not in MMENGINE_HOOKS:
            del hooks[name]
        elif hook is not None and name in MMENGINE_HOOKS:
            hook.setdefault('type', MMENGINE_HOOKS[name])


def add_trackers(cfg: Config) -> None:
    """Log to Weights & Biases or MLflow, too, with ``track='wandb'``, ``'mlflow'`` or a list of both.

    Changes ``visualizer``. Backends that it already has keep their arguments.

    Raises:
        ValueError: for another name, or if the package is not installed.
    """
    names = cfg.get('track') or []
    for name in [names] if isinstance(names, str) else names:
        if name not in TRACKERS:
            raise ValueError(f'track={name!r}: give {" or ".join(map(repr, TRACKERS))}')
        if find_spec(name) is None:
            raise ValueError(f'track={name!r}: the package is not installed: pip install {name}, or remove track')
        cfg.setdefault('visualizer', dict(type='UniversalVisualizer'))
        cfg.visualizer.setdefault('vis_backends', [dict(type='LocalVisBackend')])
        backends = cfg.visualizer.vis_backends
        if not any(backend['type'] == TRACKERS[name] for backend in backends):
            backends.append(dict(type=TRACKERS[name], **(mlflow_store() if name == 'mlflow' else {})))


def mlflow_store(folder: str = 'work_dirs') -> dict:
    """Return where MLflow stores runs: the server of ``MLFLOW_TRACKING_URI``, or a database in a folder.

    Current releases of MLflow refuse mmengine's default, a folder of files per run.
    """
    uri = os.environ.get('MLFLOW_TRACKING_URI')
    if uri:
        return dict(exp_name='bootmae', tracking_uri=uri)
    Path(folder).mkdir(exist_ok=True)
    return dict(
        exp_name='bootmae',
        tracking_uri=f'sqlite:///{folder}/mlflow.db',
        artifact_location=Path(folder, 'mlruns').resolve().as_uri(),
    )


def make_resumable(cfg: Config) -> None:
    """Make samples, their order and each step depend only on seed, epoch and index, see ``SeededSamples``.

    Changes ``train_dataloader`` (sampler, batch sampler, data set) and the loop in ``train_cfg``. With
    ``bad_images='raise'`` in the config, the first unreadable image ends the run. A loader with a sampler other than
    ``DefaultSampler`` or ``InfiniteSampler`` stays as it is, with a warning.
    """
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    sampler = dict(loader.get('sampler') or {})
    kind = sampler.pop('type', None)
    if kind not in SAMPLERS or 'num_batch_per_epoch' in loader:
        print_log(
            f'the training loader with sampler {kind} is not changed, so a resumed run has other crops, masks and '
            'order than an unbroken one; use DefaultSampler or InfiniteSampler for exact resuming',
            logger='current',
            level=logging.WARNING,
        )
        return
    sampler.pop('round_up', None)
    drop_last = loader.pop('drop_last', False)
    loader.sampler = dict(sampler, type='StreamSampler', infinite=SAMPLERS[kind], drop_last=drop_last)
    loader.batch_sampler = dict(
        type='ResumableBatches',
        drop_last=drop_last,
        accumulation=cfg.optim_wrapper.get('accumulative_counts', 1),
        inner=loader.get('batch_sampler'),
    )
    loader.dataset = dict(type='SeededSamples', dataset=loader.dataset, bad=cfg.get('bad_images', 'skip'))
    by_epoch = loop.pop('by_epoch', True)
    kind = loop.get('type', 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop')
    loop['type'] = LOOPS.get(kind, kind)
