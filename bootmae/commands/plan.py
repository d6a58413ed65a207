"""Plan a run without training: batch size, learning rate, schedule, model size, FLOPs and GPU-hours of a config."""

import argparse
import contextlib
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import METRICS
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from .. import registry  # noqa: F401
from ..config.batch import Batch, apply_batch, schedulers_of
from ..config.checks import check_data, check_dataset, check_metric, check_model, metric_configs
from ..config.images import check_class_number
from ..config.load import load_config
from ..config.model import build_model, task_of
from ..config.options import IMAGES
from ..config.steps import TRAINED, check_training, require, training_config
from ..config.weights import check_files, input_statistics
from ..data.coco import forget_files
from ..data.sampler import too_few
from ..data.value_checks import check_values
from ..engine.hooks.online_probe import OnlineProbeHook
from ..engine.hooks.provenance import precision_of
from ..models.schedules import EMA_BASE
from .verify_sources import build_dataset

LOADERS = ('train', 'val')
EMA_MOMENTUM = 0.0002  # default of EMAHook


@dataclass
class Plan:
    """All numbers that define a run; None if a config lacks one.

    ``gpu_hours`` is an estimate from the given images/s, not a measurement. ``epochs`` is a fraction for runs that are
    counted in iterations.
    """

    config: str
    gpus: int
    batch_per_gpu: int
    accumulation: int
    global_batch: int
    lr: float
    min_lr: float
    weight_decay: float
    layer_decay: float | None
    epochs: float
    warmup_epochs: float
    warmup_updates: int
    ema: list | None
    precision: str
    input_mean: list
    input_std: list
    params: int
    frozen_params: int
    gflop_per_image: float | None
    train_images: int
    iterations: int
    updates: int
    images: int
    images_per_second: float | None
    gpu_hours: float | None
    note: str | None = None


def count_images(cfg: Config, guess: bool = True, classes: bool = True) -> tuple[int, str | None]:
    """Count the training images and compare their classes with the model's.

    Args:
        cfg: A config.
        guess: Without the data, use ``train_images`` of the config.
        classes: Whether the model's classes matter.

    Returns:
        The number of images; if it is only the config's guess, also why.

    Raises:
        FileNotFoundError, ValueError: if the data is missing and there is no guess, or does not fit the model.
    """
    try:
        images = build_images(cfg, 'train_dataloader', classes)
    except FileNotFoundError as error:
        if guess and cfg.get('train_images'):
            return cfg.train_images, str(error)
        check_data(cfg.train_dataloader.dataset)  # names the setting
        raise
    return len(images), None


def build_images(cfg: Config, loader: str, classes: bool = True, transforms: bool = False) -> Dataset:
    """Build the data set of a loader, without its transforms unless they are wanted.

    Raises:
        FileNotFoundError, ValueError: if it cannot be built, is empty, or has other classes than the model.
    """
    settings = cfg[loader].dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        dataset = build_dataset(settings if transforms or 'pipeline' not in settings else dict(settings, pipeline=[]))
        if not len(dataset):
            raise ValueError(f'{loader}.dataset ({settings.type}) has no images')
        if classes:
            check_class_number(dataset, cfg)
    return dataset


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device, which allocates no memory for the weights."""
    with torch.device('meta'):
        return build_model(cfg)


def gflop_per_image(model: nn.Module, task: str) -> float | None:
    """Count the GFLOPs of a training step for one image. A multiply-add counts as two operations.

    The result is None for detection, where image sizes vary and the FLOPs depend on the detected boxes.
    """
    if task == 'detection':
        return None
    batch = 2
    channels = next(weight.shape[1] for weight in model.backbone.patch_embed.parameters() if weight.ndim == 4)
    images = torch.empty(batch, channels, *model.backbone.img_size, device='meta')
    model = revert_sync_batchnorm(model).train()  # SyncBN needs a GPU
    with FlopCounterMode(display=False) as counter:
        if task == 'pretraining':
            loss, _ = model.parse_losses(model(images, mode='loss'))
        elif task == 'segmentation':
            maps = model.extract_feat(images)
            heads = [model.decode_head] + ([model.auxiliary_head] if model.with_auxiliary_head else [])
            loss = sum(head(maps).sum() for head in heads)
        else:
            loss = model(images, mode='tensor').sum()
        loss.backward()
    return counter.get_total_flops() / batch / 1e9


def warmup(cfg: Config) -> tuple[float, bool]:
    """Return the length of the warm-up, and whether it is in epochs (else in iterations)."""
    for scheduler in schedulers_of(cfg):
        in_epochs = scheduler.get('by_epoch', True)
        if scheduler.type == 'WarmupCosineLR':
            return scheduler.warmup, in_epochs
        if scheduler.type == 'LinearLR':  # in iterations, mmengine's schedule ends one iteration early
            return (scheduler.end, True) if in_epochs else (scheduler.end - scheduler.get('begin', 0) - 1, False)
    return 0, True


def floor_lr(cfg: Config) -> float:
    """Return the final learning rate of the schedule."""
    lr = cfg.optim_wrapper.optimizer.lr
    for scheduler in schedulers_of(cfg):
        if scheduler.type == 'WarmupCosineLR':
            return scheduler.get('min_lr', 0.0)
        if scheduler.type in ('CosineAnnealingLR', 'PolyLR'):
            return scheduler.get('eta_min', 0.0)
        if scheduler.type == 'MultiStepLR':
            return float(f'{lr * scheduler.get("gamma", 0.1) ** len(scheduler.milestones):.6g}')
    return lr


@dataclass
class Length:
    """Length of a run: all iterations, iterations per epoch, and images over all processes."""

    train_images: int
    iterations: int
    epoch: float
    images: int


def length_of(cfg: Config, batch: Batch, train_images: int) -> Length:
    """Return the length of a run whose config counts epochs or iterations (after gradient accumulation).

    Raises:
        ValueError: if there are too few images for a step.
    """
    world_batch = batch.per_gpu * batch.gpus
    if 'max_iters' in cfg.train_cfg:
        iterations, epoch = cfg.train_cfg.max_iters, train_images / world_batch
    else:
        # As in StreamSampler and ResumableBatches: without drop_last, the last share of a process is filled up and its
        # last batch is incomplete. An epoch ends with a complete optimizer step.
        sampler = cfg.train_dataloader.get('sampler') or {}  # gets drop_last from make_resumable
        drop_last = bool(cfg.train_dataloader.get('drop_last') or sampler.get('drop_last'))
        sign = 1 if drop_last else -1
        epoch = sign * (sign * train_images // batch.gpus // batch.per_gpu)
        epoch -= epoch % batch.accumulation
        if not epoch:
            raise too_few(train_images, batch.gpus, batch.per_gpu, batch.accumulation, drop_last)
        iterations = cfg.train_cfg.max_epochs * epoch
    return Length(train_images, iterations, epoch, iterations * world_batch)


def make_plan(
    cfg: Config,
    path: str,
    gpus: int,
    scale_lr: bool = False,
    images_per_second: float | None = None,
    guess: bool = True,
) -> Plan:
    """Compute the plan of a config.

    Args:
        cfg: config to plan.
        path: path of the config, for the output.
        gpus: number of GPUs.
        scale_lr: whether to scale the learning rate instead of keeping the batch size of the recipe.
        images_per_second: measured speed of one GPU.
        guess: whether the config's number of images may stand for images that are missing.

    Raises:
        ValueError: if this number of GPUs cannot keep the batch size of the recipe, see :func:`apply_batch`, or the
            data does not fit.
        FileNotFoundError: if images or weights are missing.
    """
    if images_per_second is not None and images_per_second <= 0:
        raise ValueError(f'--images-per-second {images_per_second:g}: give a positive number')
    require(cfg, *TRAINED)
    batch = apply_batch(cfg, gpus, scale_lr)
    count, missing = count_images(cfg, guess)
    if missing is None:
        check_training(cfg)
        if cfg.get('val_dataloader'):
            build_images(cfg, 'val_dataloader')
    check_files(cfg)
    note = missing and f"train_images is the config's guess, since no image was found: {missing}"
    return plan_of(cfg, path, batch, count, build_on_meta(cfg), images_per_second, note)


def plan_of(
    cfg: Config,
    path: str,
    batch: Batch,
    train_images: int,
    model: nn.Module,
    images_per_second: float | None = None,
    note: str | None = None,
) -> Plan:
    """Return the plan of a config whose batch, number of images and model (on the meta device) are known."""
    length = length_of(cfg, batch, train_images)
    params, trained = list(model.parameters()), [p for p in model.parameters() if p.requires_grad]
    warm, in_epochs = warmup(cfg)
    warm_iterations = warm * length.epoch if in_epochs else warm
    optimizer, (mean, std) = cfg.optim_wrapper.optimizer, input_statistics(cfg)
    gflop = gflop_per_image(model, task_of(cfg))
    return Plan(
        config=path,
        gpus=batch.gpus,
        batch_per_gpu=batch.per_gpu,
        accumulation=batch.accumulation,
        global_batch=batch.global_size,
        lr=optimizer.lr,
        min_lr=floor_lr(cfg),
        weight_decay=optimizer.get('weight_decay', 0.0),
        layer_decay=(cfg.optim_wrapper.get('paramwise_cfg') or {}).get('layer_decay'),
        epochs=cfg.train_cfg.get('max_epochs') or round(length.iterations / length.epoch, 2),
        warmup_epochs=warm if in_epochs else round(warm / length.epoch, 2),
        warmup_updates=round(warm_iterations / batch.accumulation),
        ema=ema_of(cfg),
        precision=precision_of(cfg),
        input_mean=mean,
        input_std=std,
        params=sum(p.numel() for p in trained),
        frozen_params=sum(p.numel() for p in params) - sum(p.numel() for p in trained),
        gflop_per_image=None if gflop is None else round(gflop, 2),
        train_images=length.train_images,
        iterations=length.iterations,
        updates=-(-length.iterations // batch.accumulation),
        images=length.images,
        images_per_second=images_per_second,
        gpu_hours=round(length.images / images_per_second / 3600, 1) if images_per_second else None,
        note=note,
    )


def ema_of(cfg: Config) -> list | None:
    """Return the (epoch, decay) points of a momentum encoder or an average of the weights; None without one."""
    for hook in cfg.get('custom_hooks', []):
        if hook['type'] == 'BootMAEHook':
            return list(hook.get('ema', EMA_BASE))
        if hook['type'] == 'EMAHook':
            return [[0, 1 - hook.get('momentum', EMA_MOMENTUM)]]
    return None


def as_text(plan: Plan) -> str:
    """Format the plan as aligned lines."""
    return '\n'.join(
        f'{name:<18} {value:,}' if isinstance(value, int) else f'{name:<18} {value}'
        for name, value in asdict(plan).items()
        if value is not None
    )


def run(args: argparse.Namespace) -> None:
    """Print the plan as text or JSON."""
    chosen = any(key == IMAGES or key.startswith('train_dataloader.dataset') for key in args.cfg_options)
    with contextlib.redirect_stdout(sys.stderr):  # the stack logs to stdout
        cfg = load_config(args.config, args.cfg_options)
        plan = make_plan(cfg, args.config, args.gpus, args.auto_scale_lr, args.images_per_second, guess=not chosen)
    print(json.dumps(asdict(plan), indent=2) if args.json else as_text(plan))


def dry_run(
    config: str,
    options: dict | None = None,
    gpus: int = 1,
    scale_lr: bool = False,
    init: str | None = None,
    source: str = 'online',
    resume: str | None = None,
) -> Plan:
    """Do all checks of a training run that need no training, and return its plan.

    Raises:
        ValueError, FileNotFoundError: as the run would.
    """
    cfg, batch = training_config(config, options, gpus, scale_lr, init, source)
    check_model(cfg)
    if resume not in (None, 'auto') and not Path(resume).is_file():
        raise FileNotFoundError(f'--resume {resume}: there is no such file')
    for hook in [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]:
        if hook and hook.get('type') == OnlineProbeHook.__name__:
            probe = OnlineProbeHook(**{key: value for key, value in hook.items() if key not in ('type', 'priority')})
            probe.image_channels = cfg.get('image_channels')
            probe.data()
    model = build_on_meta(cfg)
    images = {name: check_loader(cfg, name, model) for name in LOADERS if cfg.get(f'{name}_dataloader')}
    forget_files()
    return plan_of(cfg, config, batch, images['train'], model)


def check_loader(cfg: Config, name: str, model: nn.Module) -> int:
    """Check the images, annotations and metrics of a loader as a run does, and return its number of images."""
    dataset = build_images(cfg, f'{name}_dataloader', transforms=True)
    check_values(dataset)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        metrics = [METRICS.build(each) for each in metric_configs(cfg, name)]
    check_dataset(dataset, model, metrics)
    for metric in metrics:
        check_metric(metric, dataset)
    return len(dataset)
