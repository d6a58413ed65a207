"""Keeps the global batch of a recipe on any number of GPUs."""

from dataclasses import dataclass

from mmengine.config import Config
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from ..text import count_of


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
        return f'{count_of(self.gpus, "GPU")} x {self.per_gpu} x accumulation {self.accumulation} = {self.global_size}'


def norm_note(batch: Batch, model: nn.Module) -> str:
    """Describe for the log how many images batch normalization sees at a time under accumulation, '' without either.

    Accumulation gives the gradients of the whole batch, but not its statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if batch.accumulation == 1 or not norms:
        return ''
    synced = all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    images = batch.per_gpu * (batch.gpus if synced else 1)
    return f'; batch normalization sees {count_of(images, "image")} at a time, whatever the accumulation'


def divisors(n: int) -> list[int]:
    """Return all divisors in ascending order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def settle_batch(gpus: int, per_gpu: int, recipe: int | None, accumulation: int | None = None) -> Batch:
    """Return the batch that equals the global batch of the recipe.

    Args:
        gpus: number of processes.
        per_gpu: number of images per process and iteration.
        recipe: global batch that the learning rate is meant for; None accepts any.
        accumulation: iterations per optimizer step; None computes it from the recipe.

    Raises:
        ValueError: if no accumulation gives the recipe's batch; names options that do.
    """
    if gpus < 1 or per_gpu < 1 or (accumulation is not None and accumulation < 1):
        raise ValueError(f'gpus={gpus}, batch_size={per_gpu}, accumulation={accumulation}: give at least 1 for each')
    if recipe is None:
        return Batch(gpus, per_gpu, accumulation or 1)
    if accumulation is None:
        accumulation = max(recipe // (gpus * per_gpu), 1)
    batch = Batch(gpus, per_gpu, accumulation)
    if batch.global_size != recipe:
        raise ValueError(f"{batch}, but the recipe's batch is {recipe}. {remedy(gpus, per_gpu, recipe)}")
    return batch


def remedy(gpus: int, per_gpu: int, recipe: int) -> str:
    """Return options with which the batch equals that of the recipe."""
    other = 'to keep this batch and scale the learning rate with it, add --auto-scale-lr'
    if recipe % gpus:
        fitting = [n for n in divisors(recipe) if n <= 64]
        return f'{count_of(gpus, "GPU")} do not divide it: use one of {fitting} GPUs; or, {other}.'
    share = recipe // gpus
    size = max(d for d in divisors(share) if d <= per_gpu)
    return f'Add --cfg-options train_dataloader.batch_size={size} (accumulation {share // size} follows); or, {other}.'


# mmengine's schedules that depend only on begin, end and their steps, so that they can be stretched
STRETCHABLE = ('ConstantLR', 'LinearLR', 'PolyLR', 'CosineAnnealingLR', 'StepLR', 'MultiStepLR')


def schedulers_of(cfg: Config) -> list[dict]:
    """The schedules of a config; none is allowed."""
    schedulers = cfg.get('param_scheduler') or []
    return schedulers if isinstance(schedulers, list) else [schedulers]


def stretch_iterations(cfg: Config, accumulation: int) -> None:
    """Multiply all numbers of iterations by the accumulation, so that the run makes the same optimizer steps.

    Changes length and validation interval of an iteration-based run, its checkpoint interval, and schedules counted in
    iterations (also the warm-up of an epoch-based run). Numbers of epochs stay, since an epoch has the same images.

    Raises:
        ValueError: for a schedule that cannot be stretched.
    """
    if accumulation == 1:
        return
    schedulers = [scheduler for scheduler in schedulers_of(cfg) if not scheduler.get('by_epoch', True)]
    if 'max_iters' in cfg.train_cfg:
        for scheduler in schedulers:
            scheduler.setdefault('end', cfg.train_cfg.max_iters)  # mmengine's default
        _multiply(cfg.train_cfg, ('max_iters', 'val_interval', 'val_begin'), accumulation)
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint') or {}
    if not checkpoint.get('by_epoch', True):
        _multiply(checkpoint, ('interval', 'save_begin'), accumulation)
    for scheduler in schedulers:
        stretch_schedule(scheduler, accumulation)


def stretch_schedule(scheduler: dict, accumulation: int) -> None:
    """Stretch a schedule counted in iterations, in place, so that each optimizer step keeps its learning rate.

    Step ``u`` is made in iteration ``(u + 1) * accumulation - 1``, so the schedule begins there. The learning rate of
    iterations without an optimizer step does not matter.

    Raises:
        ValueError: if its type is neither in ``STRETCHABLE`` nor ``WarmupCosineLR``, which counts optimizer steps.
    """
    if scheduler['type'] == 'WarmupCosineLR':
        _multiply(scheduler, ('warmup', 'end', 'encoder_start'), accumulation)
        return
    if scheduler['type'] not in STRETCHABLE:
        raise ValueError(
            f'param_scheduler {scheduler["type"]} cannot be stretched over {accumulation} iterations '
            f'per optimizer step: use one of {", ".join(STRETCHABLE)}, or a batch without accumulation'
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
    """Keep the recipe's global batch (``auto_scale_lr.base_batch_size``) by gradient accumulation.

    Changes ``optim_wrapper.accumulative_counts``, all numbers of iterations (:func:`stretch_iterations`), the
    accumulation of ``WarmupCosineLR``, interval and begin of ``EMAHook``, and with ``scale_lr`` the learning rate.

    Args:
        cfg: the config, changed in place.
        gpus: number of processes.
        scale_lr: keep the batch of the config and scale the learning rate linearly. The floor of the schedule stays,
            as in the authors' release.

    Raises:
        ValueError: if the batch cannot be kept, see :func:`settle_batch`.
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
    for scheduler in schedulers_of(cfg):
        if scheduler.type == 'WarmupCosineLR':
            scheduler.accumulation = batch.accumulation
    for hook in cfg.get('custom_hooks', []):
        if hook['type'] == 'EMAHook':  # its decay is meant for optimizer steps, not iterations
            hook.setdefault('interval', 1)
            _multiply(hook, ('interval', 'begin_iter'), batch.accumulation)
    return batch
