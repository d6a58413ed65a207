"""What a checkpoint records about its run."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train as run_training
from bootmae.engine.hooks import provenance

CONFIG = str(Path(__file__).resolve().parents[3] / 'configs' / 'pretrain' / 'bootmae_debug.py')
COUNT = itertools.count()


def train(work_dir: Path, epochs: int, resume: str | None = None) -> None:
    """Train the debug config on 32 images."""
    options = {
        'experiment_name': f'provenance_{next(COUNT)}',
        'log_level': 'ERROR',
        'train_dataloader.dataset.labels_per_class': None,
        'train_dataloader.dataset.indices': 32,
        'train_dataloader.batch_size': 8,
        'auto_scale_lr.base_batch_size': 8,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'train_cfg.max_epochs': epochs,
    }
    run_training(CONFIG, str(work_dir), options, resume=resume)


def test_seconds_of_a_resumed_run_add_up(tmp_path, monkeypatch):
    clock = itertools.count(1000, 10)
    monkeypatch.setattr(provenance, 'time', SimpleNamespace(time=lambda: next(clock)))
    train(tmp_path, epochs=2)  # began at 1000, saved at 1010 and 1020
    train(tmp_path, resume=str(tmp_path / 'epoch_1.pth'), epochs=2)  # 10 s, and 10 of its own
    assert read_checkpoint(tmp_path / 'epoch_1.pth')['meta']['bootmae']['seconds'] == 10
    assert read_checkpoint(tmp_path / 'epoch_2.pth')['meta']['bootmae']['seconds'] == 20


def test_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, 'git_commit', lambda: '0123456789ab+')
    train(tmp_path, epochs=1)
    facts = read_checkpoint(tmp_path / 'epoch_1.pth')['meta']['bootmae']
    assert facts.pop('seconds') >= 0
    assert facts.pop('gpu_seconds') == 0
    assert 0.05 < facts.pop('memory') < 50  # GiB of this process
    assert facts.pop('config').endswith('configs/pretrain/bootmae_debug.py')
    assert facts.pop('run') == dict(
        loop='epochs', max_epochs=1, global_batch=8, train_samples=32, optimizer='AdamW', lr=1e-3, weight_decay=0.05
    )
    assert facts == dict(
        method='BootMAE',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        img_size=[32, 32],
        num_heads=3,
        precision='float32',
        images=32,
        commit='0123456789ab+',
        accumulation=1,
    )


@pytest.mark.parametrize(
    ('wrapper', 'precision'),
    [
        (dict(), 'float32'),
        (dict(type='GuardedOptimWrapper'), 'float32'),
        (dict(type='AutocastOptimWrapper'), 'bf16 autocast'),
        (dict(type='AmpOptimWrapper'), 'fp16 autocast'),
        (dict(type='AmpOptimWrapper', dtype=None), 'fp16 autocast'),
        (dict(type='GuardedAmpOptimWrapper', dtype='float16'), 'fp16 autocast'),
        (dict(type='GuardedAmpOptimWrapper', dtype='bfloat16'), 'bf16 autocast'),
        (dict(type='mmengine.AmpOptimWrapper', dtype=torch.bfloat16), 'bf16 autocast'),
        (dict(type=OptimWrapper), 'float32'),
        (dict(type='MyOptimWrapper'), 'MyOptimWrapper'),
    ],
)
def test_precision(wrapper, precision):
    assert provenance.precision_of(Config(dict(optim_wrapper=wrapper))) == precision
