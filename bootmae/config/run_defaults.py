"""What every training run of this suite gets, whatever its config: exact resume, and guards against lost work."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

SAMPLERS = dict(DefaultSampler=False, InfiniteSampler=True)  # those that StreamSampler replaces; whether without end
LOOPS = dict(EpochBasedTrainLoop='EpochLoop', IterBasedTrainLoop='IterLoop')
WRAPPERS = dict(OptimWrapper='GuardedOptimWrapper', AmpOptimWrapper='GuardedAmpOptimWrapper')
HOOKS = dict(
    runtime_info='AsyncLoggingHook',
    preemption='PreemptionHook',
    nonfinite='NonFiniteHook',
    heartbeat='HeartbeatHook',
    collapse='CollapseMonitorHook',
)
TRACKERS = dict(wandb='WandbVisBackend', mlflow='MLflowVisBackend')


def apply_run_defaults(cfg: Config) -> None:
    """Exchange loop, loader, optimizer wrapper and checkpoint hook for those that survive, and add the watching hooks.

    Changes the config in place, after the accumulation is settled. Hooks that are named in ``default_hooks`` already
    keep their settings; None there leaves one out. ``bad_images='raise'`` in the config ends the run at the first
    unreadable image.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    cfg.optim_wrapper['type'] = WRAPPERS.get(kind, kind)
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks  # setdefault gives what it was given, of which the config has a copy
    for name, hook in HOOKS.items():
        if hooks.setdefault(name, dict(type=hook)) is not None:
            hooks[name].setdefault('type', hook)
        elif name != 'runtime_info':  # mmengine knows None of its own hooks alone
            del hooks[name]
    checkpoint = hooks.setdefault('checkpoint', dict(interval=1))
    if checkpoint and checkpoint.get('type', 'CheckpointHook') == 'CheckpointHook':
        checkpoint['type'] = 'SafeCheckpointHook'
    add_trackers(cfg)
    make_resumable(cfg)


def add_trackers(cfg: Config) -> None:
    """``track='wandb'``, ``'mlflow'`` or both in a list: write there too what TensorBoard gets. Changes the config.

    A backend that the visualizer has already stays as it is set there.

    Raises:
        ValueError: for another name, or if the package is not installed.
    """
    names = cfg.get('track') or []
    for name in [names] if isinstance(names, str) else names:
        if name not in TRACKERS:
            raise ValueError(f'track={name!r}: give {" or ".join(map(repr, TRACKERS))}')
        if find_spec(name) is None:
            raise ValueError(f'track={name!r}: the package is not installed: pip install {name}, or leave it out')
        cfg.setdefault('visualizer', dict(type='UniversalVisualizer'))
        cfg.visualizer.setdefault('vis_backends', [dict(type='LocalVisBackend')])
        backends = cfg.visualizer.vis_backends
        if not any(backend['type'] == TRACKERS[name] for backend in backends):
            backends.append(dict(type=TRACKERS[name], **(mlflow_store() if name == 'mlflow' else {})))


def mlflow_store(folder: str = 'work_dirs') -> dict:
    """Where mlflow keeps its runs: the server of ``MLFLOW_TRACKING_URI``, else one database for all runs of a folder.

    mmengine's default, a folder of files a run, is refused by current releases.
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
    """Let samples, their order and each step depend on seed, epoch and index alone; see ``SeededSamples``.

    A loader with another sampler than mmengine's two stays as it is, with a warning.
    """
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    sampler = dict(loader.get('sampler') or {})
    kind = sampler.pop('type', None)
    if kind not in SAMPLERS or 'num_batch_per_epoch' in loader:
        print_log(
            f'the training loader with sampler {kind} is left as it is: a resumed run will not repeat the '
            'crops, masks and order of an unbroken one (DefaultSampler and InfiniteSampler do)',
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
