"""From a config file and a few options to a runner that is ready to train or test."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

from ..checkpoints import find_encoder, match, read_checkpoint, refusing
from ..provenance import REPOSITORY
from .batch import Batch, norm_note, settle_batch, stretch_iterations
from .finite import ladder
from .guards import check_sizes
from .protect import protect
from .reader import apply_reader
from .runner import SuiteRunner


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config and apply ``--cfg-options``; the scope is set so that names in it are found.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path(path).parent.glob('*.py')) if Path(path).parent.is_dir() else []
        raise FileNotFoundError(f'no config {path}: {"there are " + ", ".join(near) if near else "see configs/"}')
    if str(REPOSITORY) not in sys.path:  # for custom_imports of methods in examples/ or beside it
        sys.path.append(str(REPOSITORY))
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(options or {})
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return cfg


def apply_batch(cfg: Config, gpus: int, scale_lr: bool = False) -> Batch:
    """Keep the recipe's global batch (``auto_scale_lr.base_batch_size``) by accumulation.

    Args:
        cfg: changed in place: accumulation in all that counts iterations, and the learning rate if scaled.
        gpus: number of processes.
        scale_lr: take the batch as it comes and scale the learning rate linearly. The floor of the schedule stays, as
            in the authors' release.

    Raises:
        ValueError: if the batch cannot be kept; see :func:`settle_batch`.
    """
    per_gpu = cfg.train_dataloader.batch_size
    recipe = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    accumulation = cfg.optim_wrapper.get('accumulative_counts')
    if scale_lr and recipe is None:
        raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config: the batch that its '
                         'learning rate is meant for')
    batch = settle_batch(gpus, per_gpu, None if scale_lr else recipe, accumulation)
    if scale_lr:
        cfg.optim_wrapper.optimizer.lr *= batch.global_size / recipe
    cfg.optim_wrapper.accumulative_counts = batch.accumulation
    stretch_iterations(cfg, batch.accumulation)
    for scheduler in cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]:
        if scheduler.type == 'WarmupCosineLR':
            scheduler.accumulation = batch.accumulation
    for hook in cfg.get('custom_hooks', []):
        if hook['type'] == 'EMAHook':  # averages every `interval` iterations; its decay is meant for optimiser steps
            hook['interval'] = batch.accumulation
    return batch


def apply_init(cfg: Config, checkpoint: str, source: str = 'online') -> None:
    """Start the model's backbone from a checkpoint's encoder, after checking that the input statistics agree.

    With ``adopt_statistics=True`` in the config, images are normalised as the run that made the weights did.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the config is none that starts from an encoder, if the encoder does not fit its backbone, or if
            the config normalises images otherwise than the run that made the weights.
    """
    backbone = cfg.model.get('backbone', {}).get('type')
    if backbone != 'TransferViT' and (backbone != 'PlainViT' or 'head' not in cfg.model):
        raise ValueError(f'--init starts a downstream model with a PlainViT or TransferViT backbone, not '
                         f'{cfg.model.type}: to go on with a pretraining run use --resume')
    content = read_checkpoint(checkpoint)
    with refusing(checkpoint):
        encoder = find_encoder(content, source)
    if cfg.get('adopt_statistics') and encoder.mean is not None:
        preprocessor_of(cfg).update(mean=list(encoder.mean), std=list(encoder.std))
    check_statistics(cfg, checkpoint, encoder.mean, encoder.std)
    with torch.device('meta'):
        model = MODELS.build(cfg.model.backbone)
    with refusing(checkpoint):  # at once, and not only when the data sets have been read
        match(model, encoder)
    cfg.model.backbone.init_cfg = dict(type='EncoderWeights', checkpoint=str(checkpoint), source=source)


def preprocessor_of(cfg: Config) -> dict:
    """The data preprocessor of a config: the model's own, else the shared one."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor


def input_statistics(cfg: Config) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (of 0..255) that a config normalises images with."""
    preprocessor = preprocessor_of(cfg)
    return list(preprocessor.mean), list(preprocessor.std)


def check_statistics(cfg: Config, checkpoint: str, mean, std) -> None:
    """Refuse weights made with other input statistics than the config's; None means unknown, and passes."""
    ours = input_statistics(cfg)
    if mean is not None and not np.allclose(ours, (mean, std), atol=0.01):
        raise ValueError(f'{checkpoint} was made with mean {list(mean)}, std {list(std)}, but the config normalises '
                         f'with mean {ours[0]}, std {ours[1]}: use the config of the method that made the weights '
                         '(bootmae_* or mae_*)')


def await_processes() -> None:
    """Wait for the other processes of a run before it ends.

    One that left at once would take the others' connections with it. See ``cli.leave`` too.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def apply_devices(cfg: Config, launcher: str) -> None:
    """Let a multi-process run work without GPUs: gloo, and no device numbers. mmengine assumes CUDA there."""
    if launcher == 'none' or torch.cuda.is_available():
        return
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')


def check_data(dataset: dict) -> None:
    """Fail on a wrong image folder before time goes into a model; cheap, since no image is looked for.

    Raises:
        FileNotFoundError, ValueError: see :class:`ImageFiles`.
    """
    for inner in dataset.get('datasets') or [dataset.get('dataset')]:
        if inner:
            check_data(inner)
    if dataset.get('type') == 'ImageFiles':
        DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))


def check_model(cfg: Config) -> None:
    """A BootMAE without its hook would train towards a momentum encoder that never moves."""
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    if cfg.model.type == 'BootMAE' and 'BootMAEHook' not in hooks:
        raise ValueError('model BootMAE needs custom_hooks=[dict(type=\'BootMAEHook\')]: without it the momentum '
                         'encoder never moves')


def build_runner(cfg: Config, config_path: str | Path, work_dir: str | None = None, launcher: str = 'none') -> Runner:
    """The runner of a config, its work directory ``work_dirs/<config name>`` unless given."""
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(config_path).stem)
    cfg.launcher = launcher
    # mmseg and mmdet give it one name, by which a second run in this process would go on with the first one's curves.
    cfg.get('visualizer', {}).pop('name', None)
    check_model(cfg)
    apply_devices(cfg, launcher)
    return SuiteRunner.from_cfg(cfg)


def processes(launcher: str) -> int:
    """Number of processes of this run, as the launcher says."""
    return int(os.environ.get('SLURM_NTASKS' if launcher == 'slurm' else 'WORLD_SIZE', 1)) if launcher != 'none' else 1


def train(config: str, work_dir: str | None = None, options: dict | None = None, init: str | None = None,
          source: str = 'online', resume: str | None = None, launcher: str = 'none',
          auto_scale_lr: bool = False, resume_changed: bool = False) -> Runner:
    """What ``tools/train.py`` does; see there for the arguments."""
    cfg = load_config(config, options)
    batch = apply_batch(cfg, processes(launcher), auto_scale_lr)
    for loader in ('train_dataloader', 'val_dataloader'):
        check_data((cfg.get(loader) or {}).get('dataset', {}))
    check_sizes(cfg)
    if init:
        apply_init(cfg, init, source)
    if resume:
        cfg.resume, cfg.resume_changed = True, resume_changed
        cfg.load_from = None if resume == 'auto' else resume
    apply_reader(cfg)
    protect(cfg)

    def run_once(cfg: Config) -> Runner:
        runner = build_runner(cfg, config, work_dir, launcher)
        print_log(f'global batch: {batch}{norm_note(batch, runner.model)}', logger='current')
        try:
            runner.train()
        finally:  # also where it is stopped: signal handlers go back, and the heartbeat's thread ends
            for hook in runner.hooks:
                getattr(hook, 'close', lambda: None)()
        return runner

    runner = ladder(run_once, cfg)
    await_processes()
    return runner


def apply_tta(cfg: Config) -> None:
    """Test with the config's augmentation (``tta_pipeline``, ``tta_model``): several scales and mirrored images."""
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise ValueError(f'{cfg.filename} has no tta_pipeline and tta_model: test without --tta')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in cfg.model:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def evaluate(config: str, checkpoint: str, work_dir: str | None = None, options: dict | None = None,
             launcher: str = 'none', tta: bool = False) -> dict[str, float]:
    """What ``tools/test.py`` does; gives the metrics."""
    cfg = load_config(config, options)
    check_data(cfg.test_dataloader.dataset)
    if tta:
        apply_tta(cfg)
    cfg.load_from = checkpoint
    metrics = build_runner(cfg, config, work_dir, launcher).test()
    await_processes()
    return metrics
