"""Steps that are not finite are recorded, and end the run after several in a row."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from breaking import NAN, Toy, same
from mmengine.config import Config
from torch import nn

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train as run_training
from bootmae.distributed.exits import NonFiniteError
from bootmae.engine.hooks import nonfinite
from bootmae.models.schedules import feature_weight

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
PRETRAIN = str(CONFIGS / 'pretrain' / 'bootmae_debug.py')
COUNT = itertools.count()


def settings(broken=(), kind: str = 'loss', **options) -> dict:
    """Return options for the debug config on 32 images in batches of 8; ``__`` stands for a dot in their names."""
    hooks = [
        dict(type='BootMAEHook', ema=((0, 0.9),), ramp=1.0),
        dict(type='BreakHook', iterations=list(broken), kind=kind),
    ]
    return (
        dict(experiment_name=f'finite_{next(COUNT)}', log_level='ERROR', custom_hooks=hooks)
        | {
            'train_dataloader.dataset.labels_per_class': None,
            'train_dataloader.dataset.indices': 32,
            'train_dataloader.batch_size': 8,
            'auto_scale_lr.base_batch_size': 8,
        }
        | {key.replace('__', '.'): value for key, value in options.items()}
    )


def train(work_dir: Path, *args, **kwargs):
    return run_training(PRETRAIN, str(work_dir), settings(*args, **kwargs))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)['state_dict']


def dumps(work_dir: Path) -> dict[int, dict]:
    files = sorted((work_dir / 'nonfinite').glob('step_*.json'))
    return {json.loads(file.read_text())['iteration']: json.loads(file.read_text()) for file in files}


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
def test_a_bad_step_is_written_down(tmp_path, kind):
    train(tmp_path, [1, 3, 5], kind)
    found = dumps(tmp_path)
    assert list(found) == [1, 3, 5]
    for iteration, dump in found.items():
        (batch,) = dump['batches']
        assert (batch['iteration'], batch['epoch'], dump['epoch']) == (iteration, iteration // 4, iteration // 4)
        assert math.isnan(batch['loss']) == (kind == 'loss')
        assert math.isnan(batch['logged']['loss_pixel']) == (kind == 'loss')
        assert math.isfinite(batch['logged']['loss_feature'])
        assert len(set(batch['files'])) == 8
        assert (dump['rank'], dump['world_size'], dump['batch_size'], dump['accumulation']) == (0, 1, 8, 1)
        assert dump['seed'] == 0
        assert dump['buffers'] == {'feature_weight': feature_weight(iteration // 4, 2, 1.0)}
        assert Config.fromfile(dump['config']).train_cfg.type == 'EpochLoop'
    assert found[1]['checkpoint'] is None
    assert found[3]['checkpoint'] == found[5]['checkpoint'] == str(tmp_path / 'epoch_1.pth')
    assert set(found[1]['batches'][0]['files']).isdisjoint(found[3]['batches'][0]['files']), 'of one epoch'
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / 'epoch_2.pth').values())
    steps = read_checkpoint(tmp_path / 'epoch_2.pth')['optimizer']['state'].values()
    assert {int(state['step']) for state in steps} == {5}, '8 iterations, 3 of them bad'


def test_a_record_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / 'nonfinite').write_text('a file, where the records need a folder')
    assert train(tmp_path, [1]).iter == 8


def test_the_last_step_of_a_run(tmp_path):
    train(tmp_path, [7])
    assert list(dumps(tmp_path)) == [7]


def test_accumulated_batches_are_all_written_down(tmp_path):
    train(tmp_path, [2], auto_scale_lr__base_batch_size=16)
    dump = dumps(tmp_path)[3]
    assert [batch['iteration'] for batch in dump['batches']] == [2, 3]
    assert [math.isnan(batch['loss']) for batch in dump['batches']] == [True, False]
    assert len({name for batch in dump['batches'] for name in batch['files']}) == 16


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
def test_three_in_a_row_end_the_run(tmp_path, kind):
    with pytest.raises(
        NonFiniteError,
        match=r'3 times in a row, in iterations 4, 5, 6\..*stopped_4.pth.*replay.py '
        r'.*step_6_rank0.json.*--resume-changed',
    ) as stop:
        train(tmp_path, [1, 4, 5, 6, 7], kind)
    assert stop.value.code == 3
    assert list(dumps(tmp_path)) == [1, 4, 5, 6], 'not one step more'
    ours, before = weights(tmp_path / 'nonfinite' / 'stopped_4.pth'), weights(tmp_path / 'epoch_1.pth')
    assert all(torch.equal(ours[name], before[name]) for name in before if not name.startswith('momentum.'))
    assert all(torch.isfinite(value).all() for value in ours.values())
    meta = read_checkpoint(tmp_path / 'nonfinite' / 'stopped_4.pth')['meta']
    assert (meta['epoch'], meta['iter']) == (1, 7)
    assert not (tmp_path / 'epoch_2.pth').exists()


def test_patience(tmp_path):
    with pytest.raises(NonFiniteError, match='1 time in a row, in iteration 2'):
        train(tmp_path, [2], default_hooks__nonfinite=dict(type='NonFiniteHook', patience=1))
    with pytest.raises(ValueError, match='patience=0'):
        nonfinite.NonFiniteHook(patience=0)


def test_flags_are_read_one_step_later(tmp_path, monkeypatch):
    """After a bad step they are read at once."""
    seen, read, check = [], nonfinite.Step.read, nonfinite.NonFiniteHook._check

    def watch(self, runner, step):
        if step is not None:
            seen.append((step.batches[-1]['iteration'], runner.iter))
        check(self, runner, step)

    monkeypatch.setattr(nonfinite.NonFiniteHook, '_check', watch)
    train(tmp_path, [2, 3], train_cfg__max_epochs=2)
    assert read is nonfinite.Step.read
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 3), (4, 4), (5, 6), (6, 7), (7, 8)]


def test_batch_statistics_survive(monkeypatch):
    """After a bad step, batch normalization has the running statistics from before it."""
    toy = Toy()
    toy.model.append(nn.BatchNorm1d(3))
    runner = SimpleNamespace(model=toy.model, optim_wrapper=toy.wrapper, iter=0, epoch=0, work_dir='nowhere')
    hook = nonfinite.NonFiniteHook()
    hook.before_train(runner)
    monkeypatch.setattr(hook, '_check', lambda *args: None)
    for value, bad in ((1.0, False), (NAN, True), (2.0, False)):
        before = [buffer.clone() for buffer in toy.model[3].buffers()]
        hook.before_train_iter(runner, 0)
        toy.wrapper.update_params(toy.model(value + torch.randn(5, 4)).square().mean())
        poison = toy.model[3].running_mean.isnan().any()
        hook.after_train_iter(runner, 0, {}, {})
        assert poison == bad
        assert same(before, list(toy.model[3].buffers())) == bad


def test_a_stopped_run_continues_by_hand(tmp_path):
    """The decoder overflows under autocast, and float32 decoders help, as the message suggests."""
    bad = dict(broken=[5, 6, 7], kind='autocast', optim_wrapper__type='AutocastOptimWrapper')
    with pytest.raises(NonFiniteError):
        train(tmp_path, **bad)
    run_training(PRETRAIN, str(tmp_path), settings(**bad, model__fp32_decoder=True), resume='auto')
    content = read_checkpoint(tmp_path / 'epoch_2.pth')
    assert {int(state['step']) for state in content['optimizer']['state'].values()} == {8}, 'no step is missing'
    assert list(dumps(tmp_path)) == [5, 6, 7]


def test_fp32_decoder(make_bootmae, draw_ids_shuffle):
    """Without autocast nothing changes; with it, only the decoders are in float32."""
    plain, ours = (make_bootmae(fp32_decoder=flag).float() for flag in (False, True))
    images, ids_shuffle, seen = torch.randn(2, 3, 32, 32), draw_ids_shuffle(plain), {}
    for name, value in plain.predict(images, ids_shuffle).__dict__.items():
        assert torch.equal(value, getattr(ours.predict(images, ids_shuffle), name))
    for kind, model in (('plain', plain), ('ours', ours)):
        for part in ('backbone.blocks.0.mlp', 'pixel_decoder.blocks.0.mlp', 'feature_decoder.head'):
            model.get_submodule(part).register_forward_hook(
                lambda *args, key=(kind, part): seen.__setitem__(key, args[-1].dtype)
            )
        with torch.autocast('cpu', torch.bfloat16):
            model.predict(images, ids_shuffle)
    half, full = torch.bfloat16, torch.float32
    assert list(seen.values()) == [half, half, half, half, full, full]


def test_start_weights_that_are_not_finite_end_the_run_before_its_first_step(tmp_path):
    """No learning rate would help, and none is advised."""
    options = settings() | {'model.head.init_cfg': dict(_delete_=True, type='Constant', layer='Linear', val=math.nan)}
    del options['custom_hooks']
    with pytest.raises(ValueError) as error:
        run_training(PRETRAIN.replace('pretrain/bootmae_debug', 'cls/bootmae_debug_finetune'), str(tmp_path), options)
    assert str(error.value) == (
        'the weights that the run starts from are not finite (NaN or infinity) in 1 of 34 tensors: head.fc.weight. '
        'Give other start weights: --init, load_from or init_cfg of the config'
    )
    assert not (tmp_path / 'nonfinite').exists()
