"""A type may be a plain name, a name with a scope, or a class: all tools read the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.hooks import CheckpointHook

from bootmae.config.load import load_config
from bootmae.config.run_defaults import add_hooks
from bootmae.config.settings import ON_DEMAND
from bootmae.places import REPOSITORY

PLAIN = 'configs/pretrain/bootmae_debug.py'
BASE = "_base_ = 'bootmae::pretrain/bootmae_debug.py'\n"
SCOPES = """
model = dict(type='mmpretrain.BootMAE', backbone=dict(type='mmpretrain.PlainViT'))
param_scheduler = dict(type='mmengine.WarmupCosineLR')
custom_hooks = [dict(type='mmpretrain.BootMAEHook', ema=((0, 0.9), (1, 0.99)))]
"""
CLASSES = """
import torch
import bootmae.engine.hooks.ema as hooks
import bootmae.engine.optimizers.schedule as schedule
import bootmae.models as models
model = dict(type=models.BootMAE, backbone=dict(type=models.PlainViT))
optim_wrapper = dict(optimizer=dict(type=torch.optim.AdamW))
param_scheduler = dict(type=schedule.WarmupCosineLR)
custom_hooks = [dict(type=hooks.BootMAEHook, ema=((0, 0.9), (1, 0.99)))]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / 'config.py'
    path.write_text(BASE + text)
    return path


@pytest.mark.parametrize('text', [SCOPES, CLASSES], ids=['scopes', 'classes'])
def test_the_same_config(tmp_path, text):
    found, plain = load_config(written(tmp_path, text)), load_config(PLAIN)
    for name in ('model', 'optim_wrapper', 'param_scheduler', 'custom_hooks'):
        assert found[name] == plain[name], name


def test_an_option_with_a_scope():
    assert (
        load_config(PLAIN, {'param_scheduler.type': 'mmpretrain.WarmupCosineLR'}).param_scheduler.type
        == 'WarmupCosineLR'
    )


def test_the_checkpoint_hook_is_replaced_by_ours_also_as_a_class(tmp_path):
    text = 'import mmengine.hooks as hooks\ndefault_hooks = dict(checkpoint=dict(type=hooks.CheckpointHook))\n'
    cfg = load_config(written(tmp_path, text))
    assert cfg.default_hooks.checkpoint.type == CheckpointHook.__name__
    add_hooks(cfg)
    assert cfg.default_hooks.checkpoint.type == 'SafeCheckpointHook'


def test_a_class_of_the_user_stays_a_class(tmp_path, monkeypatch):
    """A dumped config imports it by its path."""
    (tmp_path / 'own_hooks.py').write_text(
        'from mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\nclass OwnHookOfThisTest(Hook):\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load_config(written(tmp_path, 'import own_hooks\ncustom_hooks = [dict(type=own_hooks.OwnHookOfThisTest)]\n'))
    assert cfg.custom_hooks[0].type is sys.modules['own_hooks'].OwnHookOfThisTest
    assert 'own_hooks.OwnHookOfThisTest' in cfg.dump()


def test_modules_that_are_imported_on_demand():
    """Each module that registers classes is imported by the registry or listed."""
    done = subprocess.run(
        [sys.executable, '-c', 'import sys, bootmae.registry; print(*sys.modules)'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded, registering = set(done.stdout.split()), {}
    for path in (REPOSITORY / 'bootmae').rglob('*.py'):
        name = '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)
        registering[name] = bool(re.search(r'^@\w+\.register_module\(', path.read_text(), re.MULTILINE))
    on_demand = {name for name, found in registering.items() if found} - loaded
    assert on_demand
    assert all(name.startswith(ON_DEMAND) for name in on_demand), on_demand


def test_a_config_in_the_new_style(tmp_path):
    """Its imports make mmengine read it lazily."""
    text = load_config(PLAIN).dump()
    for name in ('BootMAE', 'PlainViT'):
        assert f"type='{name}'" in text
        text = f'from bootmae.models import {name}\n' + text.replace(f"type='{name}'", f'type={name}')
    path = tmp_path / 'config.py'
    path.write_text(text)
    found, plain = load_config(path), load_config(PLAIN)
    assert (found.model, found.train_dataloader) == (plain.model, plain.train_dataloader)
