"""Hooks and trackers that every training run gets."""

import pytest
from mmengine.config import Config

from bootmae.config import run_defaults


def config(**more) -> Config:
    return Config(
        dict(
            optim_wrapper=dict(),
            train_cfg=dict(),
            train_dataloader=dict(sampler=dict(type='DefaultSampler'), dataset=dict(type='DigitImages')),
        )
        | more
    )


def test_hooks_are_added_unless_left_out():
    cfg = config()
    run_defaults.apply_run_defaults(cfg)
    assert cfg.default_hooks.collapse == dict(type='CollapseMonitorHook')
    cfg = config(default_hooks=dict(collapse=None, heartbeat=None))
    run_defaults.apply_run_defaults(cfg)
    assert set(cfg.default_hooks) == {'runtime_info', 'preemption', 'bad_images', 'nonfinite', 'checkpoint'}
    cfg = config(default_hooks=dict(collapse=dict(collapsed=0)))
    run_defaults.apply_run_defaults(cfg)
    assert cfg.default_hooks.collapse == dict(type='CollapseMonitorHook', collapsed=0)


def test_any_hook_can_be_left_out():
    """mmengine takes None for its own hooks alone, and no hook without a type."""
    cfg = config(default_hooks=dict(probe=None, timer=None, logger=dict(interval=3), pictures=dict(type='X')))
    run_defaults.complete_hooks(cfg)
    assert cfg.default_hooks == dict(timer=None, logger=dict(type='LoggerHook', interval=3), pictures=dict(type='X'))


def test_trackers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_defaults, 'find_spec', lambda name: name)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    first = [dict(type='LocalVisBackend'), dict(type='WandbVisBackend', commit=False)]
    cfg = config(track=['wandb', 'mlflow'], visualizer=dict(vis_backends=first))
    run_defaults.add_trackers(cfg)
    *before, mlflow = cfg.visualizer.vis_backends
    assert before == first
    assert mlflow == dict(
        type='MLflowVisBackend',
        exp_name='bootmae',
        tracking_uri='sqlite:///work_dirs/mlflow.db',
        artifact_location=(tmp_path / 'work_dirs' / 'mlruns').as_uri(),
    )
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://server')
    assert run_defaults.mlflow_store() == dict(exp_name='bootmae', tracking_uri='http://server')
    cfg = config(track='wandb')
    run_defaults.add_trackers(cfg)
    assert [backend['type'] for backend in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'WandbVisBackend']


def test_trackers_that_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="track='neptune': give 'wandb' or 'mlflow'"):
        run_defaults.add_trackers(config(track='neptune'))
    monkeypatch.setattr(run_defaults, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match="track='wandb': .* pip install wandb"):
        run_defaults.add_trackers(config(track='wandb'))
