"""BootMAE's schedules in real runs, with accumulation and resuming."""

import itertools
from pathlib import Path

import pytest
import torch

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.plan import make_plan
from bootmae.commands.train import train as run_training
from bootmae.config.load import load_config
from bootmae.engine.hooks.ema import BootMAEHook
from bootmae.models.bootmae import BootMAE
from bootmae.models.schedules import ema_decay, feature_weight

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
CONFIG = str(CONFIGS / 'pretrain' / 'bootmae_debug.py')
POINTS = [[0, 0.5], [2, 0.9]]
COUNT = itertools.count()


def train(work_dir: Path, resume: str | None = None, **options):
    """Train the debug config on 32 images; ``__`` stands for a dot in the names of options."""
    options = {key.replace('__', '.'): value for key, value in options.items()}
    return run_training(
        CONFIG,
        str(work_dir),
        dict(experiment_name=f'hooks_{next(COUNT)}', log_level='ERROR')
        | {
            'train_dataloader.dataset.labels_per_class': None,
            'train_dataloader.dataset.indices': 32,
            'train_dataloader.batch_size': 8,
            'auto_scale_lr.base_batch_size': 8,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
        }
        | options,
        resume=resume,
    )


@pytest.fixture
def updates(monkeypatch):
    """(decay, feature weight) at each update of the momentum encoder."""
    seen, move = [], BootMAE.update_momentum

    def record(self, decay):
        if decay:  # init_weights copies with a decay of 0
            seen.append((decay, float(self.feature_weight)))
        move(self, decay)

    monkeypatch.setattr(BootMAE, 'update_momentum', record)
    return seen


def expected(epochs: int, per_epoch: int, total: int | None = None, ramp: float = 0.25) -> list:
    pairs = [(ema_decay(epoch, POINTS), feature_weight(epoch, total or epochs, ramp)) for epoch in range(epochs)]
    return [pytest.approx(pair) for pair in pairs for _ in range(per_epoch)]


@pytest.mark.parametrize('accumulation', [1, 2, 4])
def test_momentum_moves_at_updates_only(updates, tmp_path, accumulation):
    """Each update uses the decay and the feature weight of its epoch."""
    train(
        tmp_path,
        auto_scale_lr__base_batch_size=8 * accumulation,
        train_cfg__max_epochs=3,
        custom_hooks=[dict(type='BootMAEHook', ema=POINTS, ramp=1.0)],
    )
    assert updates == expected(3, 4 // accumulation, ramp=1.0)


def test_total_epochs_of_the_ramp(updates, tmp_path):
    train(
        tmp_path,
        train_cfg__max_epochs=1,
        custom_hooks=[dict(type='BootMAEHook', ema=POINTS, ramp=0.5, total_epochs=20)],
    )
    assert updates == [(0.5, pytest.approx(0.1))] * 4


def test_peak_of_the_feature_weight(updates, tmp_path):
    """A peak of 0 trains without the feature loss: the feature decoder gets no gradient."""
    train(tmp_path / 'half', train_cfg__max_epochs=1, custom_hooks=[dict(type='BootMAEHook', ema=POINTS, peak=0.5)])
    runner = train(
        tmp_path / 'none', train_cfg__max_epochs=1, custom_hooks=[dict(type='BootMAEHook', ema=POINTS, peak=0)]
    )
    assert [weight for _, weight in updates] == [0.5] * 4 + [0] * 4
    gradients = {
        decoder: runner.optim_wrapper.optimizer.state[getattr(runner.model, decoder).head.weight]['exp_avg']
        for decoder in ('pixel_decoder', 'feature_decoder')
    }
    assert gradients['pixel_decoder'].any()
    assert not gradients['feature_decoder'].any()
    with pytest.raises(ValueError, match='peak=-1'):
        BootMAEHook(peak=-1)


def test_an_epoch_ends_with_a_whole_update(updates, tmp_path):
    """5 batches with 3 per update: the last two are left out, so that an epoch ends with an update."""
    options = {'train_dataloader.dataset.indices': 40, 'auto_scale_lr.base_batch_size': 24, 'train_cfg.max_epochs': 1}
    runner = train(tmp_path, **options)
    assert runner.iter == 3
    assert len(updates) == 1
    cfg = load_config(
        CONFIG, options | {'train_dataloader.batch_size': 8, 'train_dataloader.dataset.labels_per_class': None}
    )
    plan = make_plan(cfg, CONFIG, gpus=1)
    assert (plan.iterations, plan.updates) == (3, 1)


def test_the_momentum_encoder_follows_by_hand(tmp_path, monkeypatch):
    """momentum = decay * momentum + (1 - decay) * online after each update, starting from the online weights."""
    online, own = [], BootMAE.update_momentum
    key = 'blocks.1.mlp.fc1.weight'

    def record(self, decay):
        online.append(self.backbone.get_parameter(key).detach().clone())
        own(self, decay)

    monkeypatch.setattr(BootMAE, 'update_momentum', record)
    runner = train(tmp_path, train_cfg__max_epochs=2, custom_hooks=[dict(type='BootMAEHook', ema=[[0, 0.5], [1, 0.8]])])
    assert len(online) == 9
    momentum = online[0]
    for step, weight in enumerate(online[1:]):
        decay = 0.5 if step < 4 else 0.8
        momentum = decay * momentum + (1 - decay) * weight
    torch.testing.assert_close(runner.model.momentum.get_parameter(key), momentum)


def test_a_resumed_run_repeats_an_uninterrupted_one(updates, tmp_path):
    """The schedules and all final weights are the same."""
    options = dict(train_cfg__max_epochs=4, custom_hooks=[dict(type='BootMAEHook', ema=POINTS, ramp=1.0)])
    train(tmp_path / 'whole', **options)
    whole = list(updates)
    updates.clear()
    runner = train(tmp_path / 'resumed', resume=str(tmp_path / 'whole' / 'epoch_2.pth'), **options)
    assert (runner.epoch, runner.iter) == (4, 16)
    assert updates == whole[8:] == expected(4, 4, ramp=1.0)[8:]
    ours, theirs = (read_checkpoint(tmp_path / name / 'epoch_4.pth') for name in ('resumed', 'whole'))
    torch.testing.assert_close(ours['state_dict'], theirs['state_dict'], rtol=0, atol=0)
    assert ours['meta']['bootmae']['images'] == theirs['meta']['bootmae']['images'] == 4 * 32
