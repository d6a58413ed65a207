"""Records method, input statistics, size, cost and commit in every checkpoint."""

import resource
import sys
import time

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ...checkpoints.heads import model_heads
from ...config.channels import channels_record
from ...places import portable
from ...results.provenance import git_commit
from ..runner.state import resume_signature
from ..unwrap import bare_model

PRECISIONS = {
    'OptimWrapper': 'float32',
    'GuardedOptimWrapper': 'float32',
    'AutocastOptimWrapper': 'bf16 autocast',
    'AmpOptimWrapper': 'fp16 autocast',
    'GuardedAmpOptimWrapper': 'fp16 autocast',
}
OF_AMP = {'float16': 'fp16 autocast', 'bfloat16': 'bf16 autocast', None: 'fp16 autocast'}  # by dtype of AmpOptimWrapper
INITIAL = ('init', 'init_kind', 'init_hash', 'init_remarks')  # facts about the encoder that a run started from


@HOOKS.register_module()
class ProvenanceHook(Hook):
    """Writes everything into a checkpoint that its later use needs: method, input statistics, size, cost, commit."""

    def before_run(self, runner: Runner) -> None:
        self.commit, self.begin, self.earlier = git_commit(), time.time(), {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.earlier = checkpoint['meta'].get('bootmae', {})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = bare_model(runner)
        seconds = time.time() - self.begin
        checkpoint['meta']['bootmae'] = dict(
            method=type(model).__name__,
            mean=model.data_preprocessor.mean.flatten().tolist(),
            std=model.data_preprocessor.std.flatten().tolist(),
            img_size=list(model.backbone.img_size),
            num_heads=model_heads(model.backbone),
            **({'window_size': side} if (side := getattr(model.backbone, 'window_size', None)) else {}),
            config=portable(runner.cfg.filename),
            **channels_record(runner.cfg),
            precision=precision_of(runner.cfg),
            images=checkpoint['meta']['iter'] * runner.cfg.train_dataloader.batch_size * runner.world_size,
            seconds=round(self.earlier.get('seconds', 0.0) + seconds, 1),
            gpu_seconds=self.gpu_seconds(runner),
            memory=round(max(self.earlier.get('memory', 0.0), peak_memory()), 2),
            commit=self.commit,
            accumulation=getattr(runner.optim_wrapper, '_accumulative_counts', 1),
            run=resume_signature(runner),
            **(initial_weights(model) or {key: self.earlier[key] for key in INITIAL if key in self.earlier}),
        )

    def gpu_seconds(self, runner) -> float:
        """GPU-seconds until now, those of the loaded checkpoint included; 0 on a CPU."""
        gpus = runner.world_size if torch.cuda.is_available() else 0
        return round(self.earlier.get('gpu_seconds', 0.0) + gpus * (time.time() - self.begin), 1)


def precision_of(cfg: Config) -> str:
    """Return the precision of a training, such as ``bf16 autocast``, or else the name of its optimizer wrapper."""
    kind, dtype = cfg.optim_wrapper.get('type', 'OptimWrapper'), cfg.optim_wrapper.get('dtype')
    wrapper = kind.__name__ if isinstance(kind, type) else kind.rpartition('.')[2]  # configs in Python give classes
    precision = PRECISIONS.get(wrapper, wrapper)
    dtype = dtype if dtype is None else str(dtype).removeprefix('torch.')
    return OF_AMP.get(dtype, f'{dtype} autocast') if precision == OF_AMP[None] else precision


def encoder_and_cost(runner: Runner) -> tuple[str, float]:
    """Hash of the encoder that a run started from (empty: none), and its GPU-seconds until now."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, ProvenanceHook)), None)
    if hook is None:
        return '', 0.0
    return initial_facts(runner).get('init_hash', ''), hook.gpu_seconds(runner)


def initial_facts(runner: Runner) -> dict[str, str]:
    """File name and hash of the encoder that a run started from, also before it was resumed; empty without one."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, ProvenanceHook)), None)
    earlier = getattr(hook, 'earlier', {})
    return initial_weights(bare_model(runner)) or {key: earlier[key] for key in INITIAL if key in earlier}


def peak_memory() -> float:
    """Return the peak memory of this process in GiB: CUDA memory if available, else RSS."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == 'darwin' else 2**20)


def initial_weights(model: nn.Module) -> dict[str, str]:
    """Return file name, kind and hash of the encoder that a model started from, and remarks; empty without one."""
    report = getattr(model.backbone, 'load_report', None)
    facts = () if report is None else (portable(report.path), report.kind, report.hash, '; '.join(report.remarks))
    return {key: value for key, value in zip(INITIAL, facts) if value}
