"""Logs speed and signs of collapse beside the losses; docs/watching.md explains the numbers.

Shape letters: B images, N patches, D encoder width, C channels.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from mmengine import dist
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from ...models.bootmae import BootMAE
from ...models.objectives import FEATURE_EPS, at_least_float32
from ..unwrap import bare_model

COLLAPSED = 0.1  # explained in CollapseMonitorHook


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled blocks without compilation: a batch of another size would be compiled again."""
    stance = getattr(torch.compiler, 'set_stance', None)
    with stance('force_eager') if stance is not None else contextlib.nullcontext():
        yield


@torch.no_grad()
def target_features(model: BootMAE, images: torch.Tensor) -> torch.Tensor:
    """Return the feature target of all patches as in the loss: normalized images (B, C, H, W) -> (B, N, D)."""
    encoder = model.momentum
    patches = encoder.patch_embed.patchify(images)
    x = encoder.forward_blocks(encoder.embed(patches, model.backbone.pos_embed[:, 1:]))[0][:, 1:]
    return F.layer_norm(at_least_float32(x), x.shape[-1:], eps=FEATURE_EPS)


def target_variance(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure how much targets (B, N, D) differ between patches and between images. Their power is 1.

    Returns:
        The variance over all patches of all images, and the variance over images at the same position, both averaged
        over D. The first is the error of the best constant prediction, the second the error of the best prediction
        that knows only the position. Both are 0 if all targets are equal. The second is NaN for a single image.
    """
    whole = features.flatten(0, 1).var(dim=0, correction=0).mean()
    if len(features) < 2:
        return whole, torch.full_like(whole, torch.nan)
    return whole, features.var(dim=0).mean()


@torch.no_grad()
def momentum_distance(model: BootMAE) -> torch.Tensor:
    """Return ``|momentum - online| / |online|`` over all trained weights, ()."""
    online = dict(model.backbone.named_parameters())
    pairs = [(weight, online[name]) for name, weight in model.momentum.named_parameters() if online[name].requires_grad]
    apart = torch.stack([torch.linalg.vector_norm(momentum - weight) for momentum, weight in pairs])
    size = torch.stack([torch.linalg.vector_norm(weight) for _, weight in pairs])
    return torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(size)


@HOOKS.register_module()
class CollapseMonitorHook(Hook):
    """Logs the speed of a training with its losses, and whether the target of BootMAE collapses.

    ``images_per_second`` of all processes and ``waiting_for_data``, the share of the time without a batch, are means
    since the last log line. BootMAE adds ``target_variance``, ``target_variance_images`` (:func:`target_variance`) and
    ``momentum_distance`` (:func:`momentum_distance`), computed after the step.

    The numbers are computed only in steps with a log line, for which the host waits for the GPU anyway. The training
    itself does not change.

    Args:
        images: number of images of each process's batch that the momentum encoder sees once more.
        collapsed: threshold of ``target_variance_images`` below which the log warns. At 0.1, nine tenths of each target
            follow from the position of the patch and can be predicted without the image. Encoders with random weights,
            from the demo's size to ViT-B, have 0.28 to 0.49; healthy runs of the demo's size stay above 0.2; runs
            whose momentum encoder followed too fast fell to 0.04 and 0.08.
    """

    priority = 'NORMAL'  # after the timer and the momentum encoder, before the log

    def __init__(self, images: int = 32, collapsed: float = COLLAPSED):
        if images < 2 or not 0 <= collapsed < 1:
            raise ValueError(
                f'CollapseMonitorHook images={images}, collapsed={collapsed}: give at least 2 images and '
                'a threshold from 0 to 1'
            )
        self.images, self.collapsed = images, collapsed
        self.steps, self.warned = 0, False

    def before_train(self, runner: Runner) -> None:
        self.steps, self.warned = 0, False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        self.steps += 1
        if not self.is_due(runner, batch_idx):
            return
        speed, model = self.speed(runner), bare_model(runner)
        health = self.health(model, data_batch)
        self.steps = 0
        if not (speed or health):
            return
        device = next(model.parameters()).device
        values = torch.stack([*torch.tensor(list(speed.values()), device=device), *health.values()])
        dist.all_reduce(values, 'mean')
        found = dict(zip((*speed, *health), values.tolist(), strict=True))
        for name, value in found.items():
            if math.isfinite(value):
                runner.message_hub.update_scalar(f'train/{name}', value)
        self.warn_of_collapse(runner, found)

    def is_due(self, runner: Runner, batch_idx: int) -> bool:
        """Whether mmengine's ``LoggerHook`` writes a log line after this iteration."""
        length = len(runner.train_dataloader)
        last = self.end_of_epoch(runner.train_dataloader, batch_idx)
        return any(
            self.every_n_inner_iters(batch_idx, hook.interval)
            or (last and (length <= hook.interval or not hook.ignore_last))
            for hook in runner.hooks
            if isinstance(hook, LoggerHook)
        )

    def speed(self, runner: Runner) -> dict[str, float]:
        """Return images per second of all processes, and the share of the time without a batch."""
        if 'train/time' not in runner.message_hub.log_scalars:  # a run without mmengine's timer
            return {}
        total, waited = (
            runner.message_hub.get_scalar(f'train/{name}').mean(self.steps) for name in ('time', 'data_time')
        )
        images = runner.cfg.train_dataloader.get('batch_size', 1) * runner.world_size
        return dict(images_per_second=images / total, waiting_for_data=waited / total)

    def health(self, model: nn.Module, data_batch: dict) -> dict[str, torch.Tensor]:
        """Return the variance of BootMAE's target and the momentum distance; nothing for other models."""
        if not isinstance(model, BootMAE):
            return {}
        batch = dict(inputs=data_batch['inputs'][: self.images], data_samples=None)
        with uncompiled():
            images = model.data_preprocessor(batch, training=False)['inputs']
            whole, between = target_variance(target_features(model, images))
        return dict(target_variance=whole, target_variance_images=between, momentum_distance=momentum_distance(model))

    def warn_of_collapse(self, runner: Runner, found: dict[str, float]) -> None:
        """Warn of a collapse once, and again after the target has recovered."""
        between = found.get('target_variance_images', math.nan)
        if between < self.collapsed and not self.warned:
            self.warned = True
            runner.logger.warning(
                f'COLLAPSE: only {between:.2%} of the feature target differs between images (target_variance_images), '
                f'{found["target_variance"]:.2%} between patches: the momentum encoder follows too fast. If this '
                'lasts, restart with larger EMA decays (BootMAEHook) or a lower learning rate; see docs/watching.md'
            )
        elif between > 2 * self.collapsed:
            self.warned = False
