"""What a checkpoint says of itself: method, input statistics, size, cost, commit."""

import resource
import sys
import time

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from ...results.provenance import git_commit, portable
from ..runner.state import run_facts
from ..unwrap import bare_model

PRECISIONS = {
    'OptimWrapper': 'float32',
    'GuardedOptimWrapper': 'float32',
    'AutocastOptimWrapper': 'bf16 autocast',
    'AmpOptimWrapper': 'fp16 autocast',
    'GuardedAmpOptimWrapper': 'fp16 autocast',
}


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
            **initial_weights(model),
        )


def peak_memory() -> float:
    """Most GiB that this process has held: of the GPU's memory, or resident ones without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == 'darwin' else 2**20)


def initial_weights(model: nn.Module) -> dict[str, str]:
    """File name, kind and hash of the encoder that a downstream model started from; empty if from none."""
    report = getattr(model.backbone, 'load_report', None)
    return {} if report is None else dict(init=portable(report.path), init_kind=report.kind, init_hash=report.hash)
