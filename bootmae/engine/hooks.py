"""Hooks of a run: BootMAE's schedules, losses over all ranks, and what a checkpoint says of itself."""

import resource
import sys
import time
from collections.abc import Sequence

import torch
from mmengine import dist
from mmengine.hooks import Hook, LoggerHook, RuntimeInfoHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ..models.schedules import EMA_BASE, ema_decay, feature_weight
from ..results.provenance import git_commit, portable
from .saving import run_facts

PRECISIONS = {'OptimWrapper': 'float32', 'GuardedOptimWrapper': 'float32', 'AutocastOptimWrapper': 'bf16 autocast',
              'AmpOptimWrapper': 'fp16 autocast', 'GuardedAmpOptimWrapper': 'fp16 autocast'}


def bare_model(runner) -> nn.Module:
    """The model within wrappers for several processes and for test-time augmentation."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.module if isinstance(model, BaseTTAModel) else model


@HOOKS.register_module()
class BootMAEHook(Hook):
    """Sets the feature weight and the EMA decay of each epoch, and moves the momentum encoder after each update.

    Args:
        ema: (epoch, decay) points of :func:`ema_decay`.
        ramp: share of all epochs over which the feature weight rises to its peak.
        peak: feature weight after the ramp; 0 trains without the momentum target.
        total_epochs: epochs that the ramp is a share of; default: the run's.
    """

    priority = 'ABOVE_NORMAL'  # before anything that looks at or saves the weights

    def __init__(self, ema: Sequence[tuple[float, float]] = EMA_BASE, ramp: float = 0.25, peak: float = 1.0,
                 total_epochs: int | None = None):
        if peak < 0:
            raise ValueError(f'peak={peak}: the weight of the feature loss is 0 or more')
        self.ema, self.ramp, self.peak, self.total_epochs = ema, ramp, peak, total_epochs
        self.decay = None

    def before_train_epoch(self, runner) -> None:
        weight = self.peak * feature_weight(runner.epoch, self.total_epochs or runner.max_epochs, self.ramp)
        self.decay = ema_decay(runner.epoch, self.ema)
        bare_model(runner).feature_weight.fill_(weight)
        runner.message_hub.update_scalar('train/ema_decay', self.decay)
        runner.message_hub.update_scalar('train/feature_weight', weight)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.optim_wrapper.should_update():  # an update has just been made, not a mere accumulation
            bare_model(runner).update_momentum(self.decay)


@HOOKS.register_module()
class LazyInfoHook(RuntimeInfoHook):
    """mmengine's, with losses averaged over all ranks, and brought to the host only when they are logged or saved.

    mmengine logs rank 0 alone, and reads each loss in each step, for which the host waits until the GPU has done the
    step: nothing of the next one is then prepared beside it. What is logged and saved in the end is the same.
    """

    priority = 'VERY_HIGH'

    def __init__(self):
        self.pending: list[tuple[tuple[str, ...], torch.Tensor]] = []  # of each step: names, their values (K,)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        logged, grad_norm = dict(outputs or {}), getattr(runner.optim_wrapper, 'grad_norm', None)
        if grad_norm is not None:
            logged['grad_norm'] = grad_norm
        if logged:
            values = torch.stack([value.detach().reshape(()).float() for value in logged.values()])
            dist.all_reduce(values, 'mean')
            self.pending.append((tuple(logged), values))
        if self.every_n_inner_iters(batch_idx, self.interval(runner)) or self.end_of_epoch(
                runner.train_dataloader, batch_idx):
            self.flush_logs(runner)

    @staticmethod
    def interval(runner) -> int:
        """Iterations between two lines of the log; 1 where no hook of the usual kind writes them."""
        return min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), default=1)

    def flush_logs(self, runner) -> None:
        """Bring what is pending to the message hub, where logs and checkpoints look for it. Waits for the GPU."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        numbers = iter(torch.cat([values for _, values in pending]).tolist())
        for names, _ in pending:
            for name in names:
                runner.message_hub.update_scalar(f'train/{name}', next(numbers))

    def before_val(self, runner) -> None:
        self.flush_logs(runner)
        super().before_val(runner)

    def after_train(self, runner) -> None:
        self.flush_logs(runner)
        super().after_train(runner)


def num_heads(backbone: nn.Module) -> int:
    """Attention heads of our ViT or of mmpretrain's, which no weight tells."""
    return backbone.num_heads if hasattr(backbone, 'num_heads') else backbone.layers[0].attn.num_heads


@HOOKS.register_module()
class ProvenanceHook(Hook):
    """Writes into each checkpoint what is needed to use it rightly: method, input statistics, size, cost, commit."""

    def before_run(self, runner) -> None:
        self.commit, self.begin, self.earlier = git_commit(), time.time(), {}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.earlier = checkpoint['meta'].get('bootmae', {})

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        model, wrapper = bare_model(runner), type(runner.optim_wrapper).__name__
        seconds = time.time() - self.begin
        gpus = runner.world_size if torch.cuda.is_available() else 0
        checkpoint['meta']['bootmae'] = dict(
            method=type(model).__name__,
            mean=model.data_preprocessor.mean.flatten().tolist(),
            std=model.data_preprocessor.std.flatten().tolist(),
            img_size=list(model.backbone.img_size),
            num_heads=num_heads(model.backbone),
            config=portable(runner.cfg.filename),
            precision=PRECISIONS.get(wrapper, wrapper),
            images=checkpoint['meta']['iter'] * runner.cfg.train_dataloader.batch_size * runner.world_size,
            seconds=round(self.earlier.get('seconds', 0.0) + seconds, 1),
            gpu_seconds=round(self.earlier.get('gpu_seconds', 0.0) + gpus * seconds, 1),
            memory=round(max(self.earlier.get('memory', 0.0), peak_memory()), 2),
            commit=self.commit,
            accumulation=getattr(runner.optim_wrapper, '_accumulative_counts', 1),
            run=run_facts(runner),
            **initial_weights(model))


def peak_memory() -> float:
    """Most GiB that this process has held: of the GPU's memory, or resident ones without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == 'darwin' else 2**20)


def initial_weights(model: nn.Module) -> dict[str, str]:
    """File name, kind and hash of the encoder that a downstream model started from; empty if from none."""
    verdict = getattr(model.backbone, 'verdict', None)
    return {} if verdict is None else dict(init=portable(verdict.path), init_kind=verdict.kind, init_hash=verdict.hash)
