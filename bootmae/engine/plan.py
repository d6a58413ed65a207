"""What a config would run on so many GPUs, worked out without training."""

from dataclasses import asdict, dataclass

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.registry import DATASETS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .hooks import PRECISIONS
from .run import apply_batch, input_statistics


@dataclass
class Plan:
    """All numbers that decide a run. Times are projections from the images/s given, not measurements."""

    config: str
    gpus: int
    batch_per_gpu: int
    accumulation: int
    global_batch: int
    lr: float
    min_lr: float
    weight_decay: float
    layer_decay: float | None
    epochs: int
    warmup_epochs: float
    ema: list | None
    precision: str
    input_mean: list
    input_std: list
    params: int
    frozen_params: int
    gflop_per_image: float
    train_images: int
    iterations: int
    updates: int
    images: int
    images_per_second: float | None
    gpu_hours: float | None


def count_images(cfg: Config) -> int:
    """Training images: counted where they are at hand, else the config's ``train_images``.

    Raises:
        FileNotFoundError, ValueError: if the data is missing and the config does not state the number.
    """
    try:
        return len(DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[])))
    except (FileNotFoundError, ValueError):
        if 'train_images' in cfg:
            return cfg.train_images
        raise


def build_on_meta(cfg: Config) -> nn.Module:
    """The config's model without memory for its weights."""
    model_cfg = cfg.model.to_dict()
    model_cfg.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with torch.device('meta'):
        return MODELS.build(model_cfg)


def gflop_per_image(model: nn.Module, img_size: tuple[int, int], pretraining: bool) -> float:
    """Arithmetic of a training step for one image in 1e9 operations, a multiply-add counting as two."""
    batch = 2
    images = torch.empty(batch, 3, *img_size, device='meta')
    model.train()
    with FlopCounterMode(display=False) as counter:
        if pretraining:
            loss, _ = model.parse_losses(model(images, mode='loss'))
        else:
            loss = model(images, mode='tensor').sum()
        loss.backward()
    return counter.get_total_flops() / batch / 1e9


def schedule(cfg: Config) -> tuple[float, float]:
    """Warm-up epochs and floor of the learning rate, for our schedule and for mmengine's pair of two."""
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    if schedulers[0].type == 'WarmupCosineLR':
        return schedulers[0].warmup, schedulers[0].get('min_lr', 0.0)
    warmup = next((s.end for s in schedulers if s.type == 'LinearLR'), 0)
    return warmup, next((s.get('eta_min', 0.0) for s in schedulers if s.type == 'CosineAnnealingLR'), 0.0)


def make_plan(cfg: Config, path: str, gpus: int, scale_lr: bool = False,
              images_per_second: float | None = None) -> Plan:
    """Work out a plan; ``images_per_second`` is of one GPU.

    Raises:
        ValueError: if the recipe's batch cannot be kept on so many GPUs; see :func:`apply_batch`.
    """
    batch = apply_batch(cfg, gpus, scale_lr)
    model = build_on_meta(cfg)
    pretraining = 'head' not in cfg.model or cfg.model.get('neck', {}).get('type') == 'MAEPretrainDecoder'
    optimizer, epochs = cfg.optim_wrapper.optimizer, cfg.train_cfg.max_epochs
    warmup, min_lr = schedule(cfg)
    train_images = count_images(cfg)
    share = -(-train_images // gpus)  # the sampler pads the last rank's share
    iterations = epochs * (share // batch.per_gpu if cfg.train_dataloader.get('drop_last') else
                           -(-share // batch.per_gpu))
    images = iterations * batch.per_gpu * gpus
    mean, std = input_statistics(cfg)
    hook = next((h for h in cfg.get('custom_hooks', []) if h['type'] in ('BootMAEHook', 'EMAHook')), None)
    return Plan(
        config=path, gpus=gpus, batch_per_gpu=batch.per_gpu, accumulation=batch.accumulation,
        global_batch=batch.global_size, lr=optimizer.lr, min_lr=min_lr, weight_decay=optimizer.get('weight_decay', 0.0),
        layer_decay=cfg.optim_wrapper.get('paramwise_cfg', {}).get('layer_decay'), epochs=epochs,
        warmup_epochs=warmup, ema=None if hook is None else hook.get('ema') or [[0, 1 - hook['momentum']]],
        precision=PRECISIONS[cfg.optim_wrapper.get('type', 'OptimWrapper')], input_mean=mean, input_std=std,
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen_params=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        gflop_per_image=round(gflop_per_image(model, tuple(model.backbone.img_size), pretraining), 2),
        train_images=train_images, iterations=iterations, updates=-(-iterations // batch.accumulation), images=images,
        images_per_second=images_per_second,
        gpu_hours=round(images / images_per_second / 3600, 1) if images_per_second else None)


def as_text(plan: Plan) -> str:
    """The plan as aligned lines."""
    return '\n'.join(f'{name:<18} {value:,}' if isinstance(value, int) else f'{name:<18} {value}'
                     for name, value in asdict(plan).items() if value is not None)
