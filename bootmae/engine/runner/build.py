"""Builds the runner of a config, for one process or several."""

import math
import os
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ...config.checks import check_model
from ..hooks.heartbeat import PATIENCE
from .runner import SuiteRunner

MARGIN = 60  # seconds between the verdict of the heartbeat and the end of a collective


def await_processes() -> None:
    """Wait for the other processes at the end of a run: a process that leaves early breaks their connections."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def apply_devices(cfg: Config, launcher: str) -> None:
    """Set up how several processes talk to each other.

    Without GPUs they use gloo and no device ids, where mmengine assumes CUDA. A collective waits for longer than the
    heartbeat, which names the process that is lost; NCCL's own limit of 10 minutes would end a long online probe.

    Changes ``env_cfg.dist_cfg`` and ``model_wrapper_cfg``.
    """
    if launcher == 'none':
        return
    if 'dist_cfg' not in cfg.get('env_cfg', {}):
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'nccl'})  # as in mmengine
    settings, heartbeat = cfg.env_cfg.dist_cfg, (cfg.get('default_hooks') or {}).get('heartbeat')
    if heartbeat and math.isfinite(patience := heartbeat.get('patience', PATIENCE)):
        settings.setdefault('timeout', patience + MARGIN)
    if torch.cuda.is_available():
        return
    settings.backend = 'gloo'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    if not torch.distributed.is_initialized():
        seconds = settings.get('timeout')
        torch.distributed.init_process_group('gloo', timeout=seconds and timedelta(seconds=seconds))


def work_folder(cfg: Config, config_path: str | Path, work_dir: str | None = None) -> str:
    """Return the work directory of a run: as given, as in the config, or ``work_dirs/<config name>``."""
    return os.path.expanduser(work_dir or cfg.get('work_dir') or Path('work_dirs', Path(config_path).stem))


def build_runner(cfg: Config, config_path: str | Path, work_dir: str | None = None, launcher: str = 'none') -> Runner:
    """Build the runner of a config; see :func:`work_folder` for its work directory."""
    cfg.work_dir = work_folder(cfg, config_path, work_dir)
    cfg.launcher = launcher
    # mmseg and mmdet name it, and a second run in this process would get the visualizer of that name with its curves.
    cfg.get('visualizer', {}).pop('name', None)
    check_model(cfg)
    apply_devices(cfg, launcher)
    if cfg.get('randomness', {}).get('deterministic'):  # cuBLAS reads it at its first product
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return SuiteRunner.from_cfg(cfg)


def processes(launcher: str) -> int:
    """Return the number of processes of this run, as set by the launcher."""
    return int(os.environ.get('SLURM_NTASKS' if launcher == 'slurm' else 'WORLD_SIZE', 1)) if launcher != 'none' else 1


def check_launcher(launcher: str, script: str) -> None:
    """Raise a ValueError in a process that torchrun has started without ``--launcher``: it would work alone."""
    several = os.environ.get('WORLD_SIZE', '1') not in ('', '0', '1') or os.environ.get('TORCHELASTIC_RUN_ID')
    if launcher == 'none' and several:
        raise ValueError(
            'torchrun or another launcher has started this process (WORLD_SIZE or TORCHELASTIC_RUN_ID is set), but '
            f'--launcher is missing, so each process would work alone: use {script}, or add --launcher pytorch'
        )


def is_first(launcher: str) -> bool:
    """Whether this is the first process of the run, as set by the launcher; works before they are connected."""
    return launcher == 'none' or os.environ.get('SLURM_PROCID' if launcher == 'slurm' else 'RANK', '0') == '0'
