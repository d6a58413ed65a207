"""A bad step is repeated exactly, and the place where it begins is found."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from breaking import BreakHook  # noqa: F401  registers it

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.replay import FirstBad, read_dump, replay
from bootmae.commands.train import train
from bootmae.distributed.exits import NonFiniteError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
COUNT = itertools.count()


def stopped(work_dir: Path, config: str = 'pretrain/mae_debug.py', iterations=(5, 6), **options) -> Path:
    """The dump of iteration 5, in the second epoch, of a run that two infinite gradients stopped."""
    hooks = [dict(type='BreakHook', iterations=list(iterations), kind='gradient')]
    if 'bootmae' in config:
        hooks.append(dict(type='BootMAEHook', ema=((0, 1.0),), ramp=1.0))  # it must not move after the bad step
    options = (
        dict(experiment_name=f'replay_{next(COUNT)}', log_level='ERROR', custom_hooks=hooks)
        | {
            'train_dataloader.dataset.labels_per_class': None,
            'train_dataloader.dataset.indices': 32,
            'train_dataloader.batch_size': 8,
            'auto_scale_lr.base_batch_size': 8,
            'train_cfg.max_epochs': 4,
            'default_hooks.nonfinite': dict(type='NonFiniteHook', patience=2),
        }
        | options
    )
    with pytest.raises(NonFiniteError):
        train(str(CONFIGS / config), str(work_dir), options)
    return work_dir / 'nonfinite' / 'step_5_rank0.json'


@pytest.fixture(scope='module')
def bootmae_dump(tmp_path_factory) -> Path:
    return stopped(tmp_path_factory.mktemp('bootmae'), 'pretrain/bootmae_debug.py')


def test_bootmae_is_repeated_bit_for_bit(bootmae_dump, capsys):
    """The loss was finite, only the gradient was broken from outside: so it can be compared."""
    (recorded,) = read_dump(bootmae_dump)['batches']
    (result,) = replay(bootmae_dump)
    (once,) = result['passes'].values()
    assert result['files'] == recorded['files']
    assert len(set(result['files'])) == 8
    assert once['sum'] == recorded['loss']
    assert {name: once['losses'][name] for name in recorded['logged']} == recorded['logged']
    assert (once['first'], once['gradients']) == (None, [])
    assert all(0 <= low < high <= 255 for _, low, high in result['images'])
    text = capsys.readouterr().out
    assert f'recorded loss {recorded["loss"]:.6g}' in text
    assert result['files'][3] in text
    assert 'first module whose output is not finite: none' in text


def test_the_trained_weights_are_replayed_and_not_their_average(tmp_path):
    """A file of a run with EMAHook holds the average as its state_dict."""
    hooks = [dict(type='BreakHook', iterations=[5, 6], kind='gradient'), dict(type='EMAHook', momentum=0.01)]
    dump = stopped(tmp_path, custom_hooks=hooks)
    (recorded,), (result,) = read_dump(dump)['batches'], replay(dump)
    assert result['passes']['float32']['sum'] == recorded['loss']


@pytest.mark.parametrize(
    ('wrapper', 'precision'),
    [
        (dict(type='GuardedOptimWrapper'), 'float32'),
        (dict(type='AutocastOptimWrapper'), 'bf16'),
        (dict(type='GuardedAmpOptimWrapper'), 'fp16'),
        (dict(type='GuardedAmpOptimWrapper', dtype='bfloat16'), 'bf16'),
        (dict(type='MyOptimWrapper'), 'float32'),
    ],
)
def test_the_precision_of_the_run(bootmae_dump, tmp_path, wrapper, precision):
    moved = moved_dump(bootmae_dump, tmp_path, f'optim_wrapper = {wrapper}')
    (result,) = replay(moved)
    assert set(result['passes']) == {precision, 'float32'}


def test_modules_of_the_user(bootmae_dump, tmp_path, monkeypatch):
    """The installed package finds them in the current folder, as in the training."""
    (tmp_path / 'module_of_a_user.py').write_text('')
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr('bootmae.config.load.runs_folder', lambda: tmp_path)
    moved = moved_dump(bootmae_dump, tmp_path, "custom_imports['imports'].append('module_of_a_user')")
    assert len(replay(moved)) == 1


def moved_dump(dump: Path, folder: Path, more: str) -> Path:
    """A dump in another folder with its weights, and its config with one more line."""
    content = read_dump(dump) | dict(config='config.py')
    (folder / 'config.py').write_text(f'{dump.with_name("config.py").read_text()}\n{more}\n')
    (folder / dump.name).write_text(json.dumps(content))
    return folder / dump.name


def test_accumulation_and_the_masks_of_mae(tmp_path):
    """MAE draws its masks in the step; each of the two batches has its own."""
    dump = stopped(tmp_path, iterations=[4, 6], **{'auto_scale_lr.base_batch_size': 16})
    recorded = read_dump(dump)['batches']
    results = replay(dump)
    assert [batch['iteration'] for batch in recorded] == [4, 5]
    assert [result['passes']['float32']['sum'] for result in results] == [batch['loss'] for batch in recorded]
    assert results[0]['files'] != results[1]['files']


def test_the_first_module_of_all(bootmae_dump, tmp_path):
    """Weights that float16 cannot hold the products of: it is named, and float32 is fine."""
    content = read_checkpoint(bootmae_dump.with_name('stopped_5.pth'))
    content['state_dict']['feature_decoder.embed.weight'] *= 1e8
    torch.save(content, tmp_path / 'large.pth')
    (result,) = replay(bootmae_dump, tmp_path / 'large.pth', 'fp16')
    half, full = result['passes']['fp16'], result['passes']['float32']
    assert half['first'] == 'feature_decoder.embed (Linear)'
    assert 'feature_decoder.embed.weight' in half['gradients']
    assert [math.isfinite(once['sum']) for once in (half, full)] == [False, True]
    assert (full['first'], full['gradients']) == (None, [])


def test_a_module_that_is_given_bad_input():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2))
    with FirstBad(model) as bad:
        model(torch.tensor([[1.0, float('inf')]]))
    assert bad.name == '0 (Identity), whose input is not finite either'
    with FirstBad(model) as bad:
        model(torch.ones(1, 2))
    assert bad.name is None
    assert not any(module._forward_hooks for module in model)


def test_a_moved_work_directory(bootmae_dump, tmp_path):
    """What lies beside the dump is found there."""
    moved = tmp_path / 'elsewhere'
    moved.mkdir()
    content = read_dump(bootmae_dump)
    content.update(config='/gone/nonfinite/config.py', weights='/gone/nonfinite/stopped_5.pth')
    (moved / 'step_5_rank0.json').write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match='config.py, the config of the run, is missing'):
        replay(moved / 'step_5_rank0.json')
    for name in ('config.py', 'stopped_5.pth'):
        (moved / name).symlink_to(bootmae_dump.with_name(name))
    assert replay(moved / 'step_5_rank0.json')[0]['files'] == content['batches'][0]['files']


def test_user_errors(bootmae_dump, tmp_path):
    with pytest.raises(FileNotFoundError, match='no file .*step_9_rank0.json: the folder has .*step_5_rank0.json'):
        replay(bootmae_dump.with_name('step_9_rank0.json'))
    with pytest.raises(FileNotFoundError, match='no file .*nothing.json: bad steps are written to nonfinite/'):
        replay(tmp_path / 'nothing.json')
    (tmp_path / 'other.json').write_text('[1, 2')
    with pytest.raises(ValueError, match='other.json does not describe a bad step'):
        replay(tmp_path / 'other.json')
    content = read_dump(bootmae_dump)
    content['batches'][0]['files'][0] = 'a.jpg'
    content |= dict(weights='gone.pth')
    changed = bootmae_dump.with_name('changed.json')
    changed.write_text(json.dumps(content | dict(checkpoint=None)))
    with pytest.raises(FileNotFoundError, match='give --checkpoint FILE of about iteration 5'):
        replay(changed)
    changed.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'the loader yields .*, but the run had \[.a.jpg.*has the data set changed'):
        replay(changed)
