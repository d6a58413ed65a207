"""The runner of a config, for one process or several."""

import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ...config.checks import check_model
from .runner import SuiteRunner


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


def build_runner(cfg: Config, config_path: str | Path, work_dir: str | None = None, launcher: str = 'none') -> Runner:
    """The runner of a config, its work directory ``work_dirs/<config name>`` unless given."""
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(config_path).stem)
    cfg.launcher = launcher
    # mmseg and mmdet give it one name, by which a second run in this process would go on with the first one's curves.
    cfg.get('visualizer', {}).pop('name', None)
    check_model(cfg)
    apply_devices(cfg, launcher)
    if cfg.get('randomness', {}).get('deterministic'):  # cuBLAS, which looks at its first product, refuses without
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return SuiteRunner.from_cfg(cfg)


def processes(launcher: str) -> int:
    """Number of processes of this run, as the launcher says."""
    return int(os.environ.get('SLURM_NTASKS' if launcher == 'slurm' else 'WORLD_SIZE', 1)) if launcher != 'none' else 1
