"""The global batch of a recipe on any number of GPUs."""

from dataclasses import dataclass

from mmengine.config import Config
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn


@dataclass(frozen=True)
class Batch:
    """``global_size = gpus * per_gpu * accumulation``."""

    gpus: int
    per_gpu: int
    accumulation: int

    @property
    def global_size(self) -> int:
        return self.gpus * self.per_gpu * self.accumulation

    def __str__(self) -> str:
        return f'{self.gpus} GPUs x {self.per_gpu} x accumulation {self.accumulation} = {self.global_size}'


def norm_note(batch: Batch, model: nn.Module) -> str:
    """What a log says beside an accumulated batch: how many images batch normalization sees at a time, if there is any.

    Gradients of an accumulated batch are those of the whole one; statistics are not.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if batch.accumulation == 1 or not norms:
        return ''
    synced = all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    images = batch.per_gpu * (batch.gpus if synced else 1)
    return f'; batch normalization sees {images} images at a time, accumulation does not add to them'


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def settle_batch(gpus: int, per_gpu: int, recipe: int | None, accumulation: int | None = None) -> Batch:
    """The batch to run with, so that it equals the recipe's.

    Args:
        gpus: number of processes.
        per_gpu: images of one process in one iteration.
        recipe: global batch that the learning rate is meant for; None: whatever comes out.
        accumulation: iterations to an optimizer step; None: worked out from the recipe.

    Raises:
        ValueError: if no whole accumulation gives the recipe's batch, with the settings that would.
    """
    if gpus < 1 or per_gpu < 1 or (accumulation is not None and accumulation < 1):
        raise ValueError(f'gpus={gpus}, batch_size={per_gpu}, accumulation={accumulation}: all must be at least 1')
    if recipe is None:
        return Batch(gpus, per_gpu, accumulation or 1)
    if accumulation is None:
        accumulation = max(recipe // (gpus * per_gpu), 1)
    batch = Batch(gpus, per_gpu, accumulation)
    if batch.global_size != recipe:
        raise ValueError(f"{batch}, but the recipe's batch is {recipe}. {remedy(gpus, per_gpu, recipe)}")
    return batch


def remedy(gpus: int, per_gpu: int, recipe: int) -> str:
    other = 'to train with the batch as it is and scale the learning rate with it, add --auto-scale-lr'
    if recipe % gpus:
        fitting = [n for n in divisors(recipe) if n <= 64]
        return f'{gpus} GPUs do not divide it: use one of {fitting} GPUs; or, {other}.'
    share = recipe // gpus
    size = max(d for d in divisors(share) if d <= per_gpu)
    return f'Add --cfg-options train_dataloader.batch_size={size} (accumulation {share // size} follows); or, {other}.'


# mmengine's schedules that hold a value or follow a curve from begin to end, so that they can be stretched
STRETCHABLE = ('ConstantLR', 'LinearLR', 'PolyLR', 'CosineAnnealingLR', 'StepLR', 'MultiStepLR')


def stretch_iterations(cfg: Config, accumulation: int) -> None:
    """Multiply all that counts iterations by the accumulation, so that the run has the same optimizer steps.

    In place: length and validation of an iteration-based run, its checkpoints, and schedules counted in iterations
    (of an epoch-based run too: a warm-up). What counts epochs stays, since an epoch has the same images.

    Raises:
        ValueError: for a schedule that cannot be stretched.
    """
    if accumulation == 1:
        return
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    schedulers = [scheduler for scheduler in schedulers if not scheduler.get('by_epoch', True)]
    if 'max_iters' in cfg.train_cfg:
        for scheduler in schedulers:
            scheduler.setdefault('end', cfg.train_cfg.max_iters)  # as mmengine would
        _multiply(cfg.train_cfg, ('max_iters', 'val_interval', 'val_begin'), accumulation)
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint', {})
    if not checkpoint.get('by_epoch', True):
        _multiply(checkpoint, ('interval', 'save_begin'), accumulation)
    for scheduler in schedulers:
        stretch_schedule(scheduler, accumulation)


def stretch_schedule(scheduler: dict, accumulation: int) -> None:
    """Stretch a schedule that counts iterations, so that each optimizer step finds the rate of the unstretched one.

    In place. Step ``u`` is made in iteration ``(u + 1) * accumulation - 1``, so that is where the schedule begins; the
    rate of iterations before, in which no step is made, is of no account.

    Raises:
        ValueError: if its type is not one of ``STRETCHABLE``, nor ours, which counts optimizer steps itself.
    """
    if scheduler['type'] == 'WarmupCosineLR':
        _multiply(scheduler, ('warmup', 'end'), accumulation)
        return
    if scheduler['type'] not in STRETCHABLE:
        raise ValueError(
            f'param_scheduler {scheduler["type"]} cannot be stretched over {accumulation} iterations to '
            f'an optimizer step: use one of {", ".join(STRETCHABLE)}, or a batch without accumulation'
        )
    begin = scheduler.get('begin', 0)
    if scheduler['type'] == 'CosineAnnealingLR':
        scheduler.setdefault('T_max', scheduler['end'] - begin)
    scheduler['begin'] = (begin + 1) * accumulation - 1
    _multiply(scheduler, ('end', 'T_max', 'step_size', 'milestones'), accumulation)


def _multiply(section: dict, keys: tuple[str, ...], factor: int) -> None:
    for key in keys:
        if key in section:
            value = section[key]
            section[key] = [step * factor for step in value] if isinstance(value, (list, tuple)) else value * factor


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
        raise ValueError(
            '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config: the batch that its '
            'learning rate is meant for'
        )
    batch = settle_batch(gpus, per_gpu, None if scale_lr else recipe, accumulation)
    if scale_lr:
        cfg.optim_wrapper.optimizer.lr *= batch.global_size / recipe
    cfg.optim_wrapper.accumulative_counts = batch.accumulation
    stretch_iterations(cfg, batch.accumulation)
    for scheduler in cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]:
        if scheduler.type == 'WarmupCosineLR':
            scheduler.accumulation = batch.accumulation
    for hook in cfg.get('custom_hooks', []):
        if hook['type'] == 'EMAHook':  # averages every `interval` iterations; its decay is meant for optimizer steps
            hook['interval'] = batch.accumulation
    return batch
