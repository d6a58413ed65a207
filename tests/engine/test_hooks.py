"""BootMAE's schedules in real runs, accumulation and resuming included, and what checkpoints say of themselves."""

import itertools
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.plan import make_plan
from bootmae.commands.train import train as run_training
from bootmae.config.load import load_config
from bootmae.engine.hooks import logging, provenance
from bootmae.engine.hooks.ema import BootMAEHook
from bootmae.engine.runner.build import build_runner
from bootmae.models.bootmae import BootMAE
from bootmae.models.schedules import ema_decay, feature_weight

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CONFIG = str(CONFIGS / 'pretrain' / 'bootmae_debug.py')
POINTS = [[0, 0.5], [2, 0.9]]
COUNT = itertools.count()


def train(work_dir: Path, resume: str | None = None, **options):
    """The debug config on 32 images; ``__`` stands for a dot in the names of options."""
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
    """(iterations done, decay, feature weight) at each move of the momentum encoder."""
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
    """With the decay and the feature weight of the epoch."""
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
    """0 trains without the momentum target: the feature decoder gets no gradient."""
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
    """5 batches, 3 to an update: the last two are left out, so that a resumed epoch begins with an update."""
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
    """momentum = decay * momentum + (1 - decay) * online after each update, beginning at the online weights."""
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
    """Schedules and all final weights; the optimizer, the learning rate, images and masks go on where they were."""
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


def test_seconds_of_a_resumed_run_add_up(tmp_path, monkeypatch):
    clock = itertools.count(1000, 10)
    monkeypatch.setattr(provenance, 'time', SimpleNamespace(time=lambda: next(clock)))
    train(tmp_path, train_cfg__max_epochs=2)  # began at 1000, saved at 1010 and 1020
    train(tmp_path, resume=str(tmp_path / 'epoch_1.pth'), train_cfg__max_epochs=2)  # 10 s, and 10 of its own
    assert read_checkpoint(tmp_path / 'epoch_1.pth')['meta']['bootmae']['seconds'] == 10
    assert read_checkpoint(tmp_path / 'epoch_2.pth')['meta']['bootmae']['seconds'] == 20


def test_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, 'git_commit', lambda: '0123456789ab+')
    train(tmp_path, train_cfg__max_epochs=1)
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


# Losses are brought to the host when they are logged or saved


class Recorder(Hook):
    """How often a tensor was read in each iteration, and what the message hub then knew of the losses."""

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
    """``recorded(work_dir, config, **options)``: the runner, and a Recorder that watched it."""

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


FINETUNE = str(CONFIGS / 'cls' / 'bootmae_debug_finetune.py')


MIXED = {'model.train_cfg.augments': [dict(type='Mixup', alpha=0.8)]}  # LabelSmoothLoss looks at unmixed labels


@pytest.mark.parametrize('config, options', [(CONFIG, {}), (FINETUNE, MIXED)])
def test_no_step_reads_the_device(recorded, tmp_path, config, options):
    """Clipping included. On a GPU each read would wait until the step is done."""
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
    """The call that is made; tests/tools/test_dist.py has the real thing."""
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
