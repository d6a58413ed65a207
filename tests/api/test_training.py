"""build and train from Python: names, options, own images, and what the tools' options are called."""

import multiprocessing
import os
import random
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from mmpretrain.visualization import UniversalVisualizer
from torch.testing import assert_close

import bootmae
from bootmae.api import training
from bootmae.api.quiet import one_training
from bootmae.checkpoints import read_checkpoint

QUIET = {'log_level': 'ERROR'}


def test_models_of_configs_by_name(home):
    model = bootmae.build('bootmae_debug')
    assert type(model) is bootmae.BootMAE
    assert model.training
    assert torch.equal(model.momentum.blocks[0].attn.qkv.weight, model.backbone.blocks[0].attn.qkv.weight)
    assert not model.backbone.blocks[0].mlp.fc1.bias.any()  # torch's own initial values are not zero
    other = bootmae.build('bootmae::pretrain/bootmae_debug.py', {'model.backbone.arch.depth': 3})
    assert len(other.backbone.blocks) == 3
    assert type(bootmae.build('mae_debug')).__name__ == 'MAE'
    assert type(bootmae.build('bootmae_debug_finetune')).__name__ == 'ImageClassifier'
    assert type(bootmae.build('upernet_debug')).__name__ == 'EncoderDecoder'


def test_names_and_options_that_do_not_exist():
    with pytest.raises(FileNotFoundError, match='did you mean bootmae_vitb'):
        bootmae.build('bootmae_vitbb')
    with pytest.raises(ValueError, match="nothing is called 'dept' there; is depth meant"):
        bootmae.build('bootmae_debug', {'model.backbone.arch.dept': 1})


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What train asks of the command, which does not run."""
    calls: list[tuple] = []

    class Runner:
        message_hub = MessageHub('asked')

    monkeypatch.setattr(training, 'train_config', lambda *args, **kwargs: calls.append((args, kwargs)) or Runner())
    return calls


def test_arguments_become_options_of_the_tool(asked, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', '/home/me')
    defaults = dict(resume=None, resume_changed=False, move_old=False)
    assert bootmae.train('bootmae_debug') is None  # it has saved no checkpoint
    assert asked.pop() == (('bootmae_debug', None, {}, None), defaults)
    options = {'train_dataloader.batch_size': 8}
    bootmae.train('x', Path('/my/images'), Path('~/a'), 100, Path('b'), True, options=options)
    values = options | {'images': [Path('/my/images')], 'train_cfg.max_epochs': 100}
    assert asked.pop() == (('x', '/home/me/a', values, 'b'), defaults | dict(resume='auto'))
    assert options == {'train_dataloader.batch_size': 8}
    bootmae.train('x', ['a', 'b'], resume='c.pth', resume_changed=True, move_aside=True)
    told = dict(resume='c.pth', resume_changed=True, move_old=True)
    assert asked.pop() == (('x', None, {'images': ['a', 'b']}, None), told)
    with pytest.raises(ValueError, match='max_epochs=2 and the option train_cfg.max_epochs=1: leave one out'):
        bootmae.train('x', max_epochs=2, options={'train_cfg.max_epochs': 1})
    assert not asked


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(data=[]), 'data=[]: give at least one path, or leave data out for the images of the config'),
        (dict(work_dir=''), "work_dir='': give a path"),
        (dict(init=''), "init='': give a path"),  # as from a variable that is not set
        (dict(resume=''), "resume='': give a path"),
        (dict(resume=1.5), 'resume=1.5: give a path'),
        (dict(max_epochs=0), 'max_epochs=0: give a whole number of at least 1'),
        (dict(max_epochs='9'), "max_epochs='9': give a whole number of at least 1"),
        (dict(options=['a=1']), "options=['a=1']: give a dict"),
    ],
)
def test_arguments_that_would_be_ignored(asked, arguments, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        bootmae.train('bootmae_debug', **arguments)
    assert not asked


def state() -> list:
    numbers = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
    kinds = [MMLogger, MessageHub, DefaultScope, Visualizer, UniversalVisualizer]
    return [numbers, multiprocessing.get_start_method(), [list(kind._instance_dict) for kind in kinds]]


def open_logs() -> list[str]:
    return sorted(path for path in map(os.path.realpath, Path('/proc/self/fd').glob('*')) if path.endswith('.log'))


def test_a_training_leaves_the_program_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.context._default_context, '_actual_context', None)
    multiprocessing.set_start_method('spawn')
    before, logs = state(), open_logs()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Multi-processing start method')
        for name in ('a', 'b'):  # two runs in one second
            bootmae.train('bootmae_debug', work_dir=tmp_path / name, max_epochs=1, options=QUIET)
            assert state() == before
        with pytest.raises(ValueError, match='already holds checkpoints'):
            bootmae.train('bootmae_debug', work_dir=tmp_path / name, max_epochs=2, options=QUIET)
    assert state() == before
    assert [len(list((tmp_path / name).glob('*/*.log'))) for name in ('a', 'b')] == [1, 1]
    assert open_logs() == logs


@contextmanager
def scientific():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_training_is_the_same_under_other_settings(home, tmp_path):
    with scientific():
        path = bootmae.train('bootmae_debug', work_dir=tmp_path, options=QUIET)
    expected = read_checkpoint(home / 'work_dirs/bootmae_debug/epoch_2.pth')['state_dict']
    assert_close(read_checkpoint(path)['state_dict'], expected, rtol=0, atol=0)


def test_one_training_at_a_time(asked):
    """Two threads would draw from the same random numbers."""
    with (
        one_training(),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ValueError, match='another thread of this process'),
    ):
        pool.submit(bootmae.train, 'bootmae_debug').result()
    assert not asked
    bootmae.train('bootmae_debug')
    assert len(asked) == 1


def test_a_finished_run_resumes_to_its_last_checkpoint(home, tmp_path):
    shutil.copy(home / 'work_dirs/bootmae_debug/epoch_2.pth', tmp_path)
    before = (tmp_path / 'epoch_2.pth').read_bytes()
    path = bootmae.train('bootmae_debug', work_dir=tmp_path, resume=True, options=QUIET)
    assert path == tmp_path / 'epoch_2.pth'
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match='already holds checkpoints.*max_epochs 2, here 3'):
        bootmae.train('bootmae_debug', work_dir=tmp_path, max_epochs=3, options=QUIET)


def test_the_last_checkpoint_of_a_run_with_other_settings(home, tmp_path):
    """Its folder holds checkpoints with either settings."""
    shutil.copy(home / 'work_dirs/bootmae_debug/epoch_2.pth', tmp_path)
    options = QUIET | {'optim_wrapper.optimizer.lr': 5e-4, 'default_hooks.checkpoint.max_keep_ckpts': -1}
    path = bootmae.train(
        'bootmae_debug', work_dir=tmp_path, max_epochs=3, resume=True, resume_changed=True, options=options
    )
    assert path == tmp_path / 'epoch_3.pth'
    assert sorted(file.name for file in tmp_path.glob('*.pth')) == ['epoch_2.pth', 'epoch_3.pth']
