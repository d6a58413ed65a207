"""Losses reach the host only when they are logged or saved, with the values that mmengine logs."""

import itertools
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train as run_training
from bootmae.engine.hooks import logging
from bootmae.engine.runner.build import build_runner

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
CONFIG, FINETUNE = (str(CONFIGS / name) for name in ('pretrain/bootmae_debug.py', 'cls/bootmae_debug_finetune.py'))
MIXED = {'model.train_cfg.augments': [dict(type='Mixup', alpha=0.8)]}  # LabelSmoothLoss reads unmixed labels
COUNT = itertools.count()


class Recorder(Hook):
    """Records how often a tensor is read in each iteration, and the losses in the message hub after it."""

    priority = 'LOWEST'

    def __init__(self, monkeypatch):
        self.calls, self.known = [], []
        for name in ('item', '__float__', '__bool__', '__int__'):
            monkeypatch.setattr(torch.Tensor, name, self.counting(getattr(torch.Tensor, name)))

    def counting(self, method):
        def call(tensor):
            self.calls.append(''.join(traceback.format_stack(limit=4)))
            return method(tensor)

        return call

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.calls.clear()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.known.append((list(self.calls), hub_losses(runner)))


def hub_losses(runner, name: str = 'loss') -> list[float]:
    scalars = runner.message_hub.log_scalars
    return scalars[f'train/{name}'].data[0].tolist() if f'train/{name}' in scalars else []


@pytest.fixture
def recorded(monkeypatch):
    """A function that trains and returns the runner and what a Recorder saw."""

    def call(work_dir, config=CONFIG, **options):
        recorder, build = Recorder(monkeypatch), build_runner

        def build_recorded(*args, **kwargs):
            runner = build(*args, **kwargs)
            runner.register_hook(recorder)
            return runner

        with monkeypatch.context() as patch:
            patch.setattr('bootmae.commands.train.build_runner', build_recorded)
            options = {key.replace('__', '.'): value for key, value in options.items()}
            runner = run_training(
                config,
                str(work_dir),
                options
                | {
                    'experiment_name': f'recorded_{next(COUNT)}',
                    'log_level': 'ERROR',
                    'train_dataloader.batch_size': 16,
                    'auto_scale_lr.base_batch_size': 16,
                    'train_cfg.max_epochs': 1,
                },
            )
        monkeypatch.undo()
        return runner, recorder.known

    return call


@pytest.mark.parametrize('config, options', [(CONFIG, {}), (FINETUNE, MIXED)])
def test_no_step_reads_the_device(recorded, tmp_path, config, options):
    """Also with clipping. On a GPU each read would wait for the end of the step."""
    _, known = recorded(
        tmp_path,
        config,
        default_hooks__logger__interval=4,
        optim_wrapper__optimizer__fused=True,
        optim_wrapper__clip_grad=dict(max_norm=1.0),
        **options,
    )
    assert [calls[:1] for calls, _ in known[:8]] == [[]] * 8
    assert [len(losses) for _, losses in known[:8]] == [0, 0, 0, 4, 4, 4, 4, 8]


def test_what_is_logged_late_is_the_same(recorded, tmp_path):
    early, late = (
        recorded(
            tmp_path / str(interval),
            default_hooks__logger__interval=interval,
            optim_wrapper__clip_grad=dict(max_norm=1.0),
        )[0]
        for interval in (1, 4)
    )
    for name in ('loss', 'loss_pixel', 'loss_feature', 'feature_error', 'grad_norm'):
        assert len(hub_losses(late, name)) == 10
        assert hub_losses(late, name) == hub_losses(early, name)


def test_a_save_between_two_lines_of_the_log_has_all_losses(recorded, tmp_path):
    runner, _ = recorded(
        tmp_path,
        default_hooks__logger__interval=4,
        default_hooks__checkpoint__by_epoch=False,
        default_hooks__checkpoint__interval=6,
    )
    saved = read_checkpoint(tmp_path / 'iter_6.pth')['message_hub']['log_scalars']['train/loss']
    assert saved.data[0].tolist() == hub_losses(runner)[:6]


def test_losses_are_averaged_over_processes(monkeypatch):
    """Checks the call; tests/tools/test_dist.py trains with two processes."""
    calls = []

    def all_reduce(values, how):
        calls.append(how)
        values += torch.tensor([1.0, 2.0])

    monkeypatch.setattr(logging.dist, 'all_reduce', all_reduce)
    hub = MessageHub.get_instance(f'averaged_{next(COUNT)}')
    runner = SimpleNamespace(hooks=[], optim_wrapper=None, message_hub=hub, train_dataloader=[0] * 9)
    outputs = dict(loss=torch.tensor(2.0, requires_grad=True), loss_pixel=torch.tensor(1.0, dtype=torch.bfloat16))
    logging.AsyncLoggingHook().after_train_iter(runner, 0, outputs=outputs)
    assert calls == ['mean']
    assert [hub_losses(runner, name) for name in outputs] == [[3.0], [3.0]]
