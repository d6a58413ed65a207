"""Arguments of a training that contradict each other or have no effect are refused, also by a dry run."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from calling import call_tool

import bootmae
from bootmae.checkpoints import read_checkpoint
from bootmae.places import REPOSITORY

TUNE = REPOSITORY / 'configs' / 'cls' / 'bootmae_debug_finetune.py'
COUNT = itertools.count()
SMALL = ['log_level=ERROR', 'train_dataloader.dataset.indices=32', 'val_dataloader.dataset.indices=32']


def call(*args, options=()) -> int:
    name = f'experiment_name=arguments_{next(COUNT)}'
    return call_tool('train', TUNE, *args, '--cfg-options', name, *SMALL, 'train_cfg.max_epochs=1', *options)


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('run')
    assert call('--work-dir', folder) == 0
    return folder


@pytest.fixture
def refusal(run, tmp_path, monkeypatch, capsys):
    """``refusal(*args)``: the error of a training, which leaves no file."""
    monkeypatch.chdir(tmp_path)

    def make(*args, options=()) -> str:
        assert call(*args, options=options) == 2
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().err.splitlines()[-1]

    return make


@pytest.mark.parametrize('more', [[], ['--dry-run']], ids=['train', 'dry-run'])
@pytest.mark.parametrize(
    ('args', 'options', 'message'),
    [
        (['--resume-changed'], [], '--resume-changed (resume_changed=True) only says how to resume: add --resume'),
        (['--row', 'task=finetune'], [], '--row task=finetune needs --rows FILE.csv'),
        (['--source', 'online'], [], '--source needs --init'),
        (['--move-aside', '--resume'], [], '--move-aside starts a new run and --resume continues one'),
        (['--work-dir', 'a'], ['work_dir=b'], '--work-dir a and --cfg-options work_dir=b: leave one of them out'),
        (
            ['--rows', 'rows.csv', '--row', 'task=finetune', '--row', 'task=linear'],
            [],
            '--row task is given twice with different values',
        ),
    ],
)
def test_arguments(refusal, args, options, message, more):
    assert message in refusal(*args, *more, options=options)


@pytest.mark.parametrize('more', [[], ['--dry-run']], ids=['train', 'dry-run'])
def test_two_sources_of_start_weights(run, refusal, more):
    file = run / 'epoch_1.pth'
    line = refusal('--init', file, *more, options=[f'load_from={file}'])
    assert f'--init {file} and load_from={file} of ' in line
    assert line.endswith('both give start weights; leave one of them out')


def test_from_python(run):
    with pytest.raises(ValueError, match=r'\(resume_changed=True\) only says how to resume: add --resume \(resume=T'):
        bootmae.train(TUNE, work_dir=run, resume_changed=True)


@pytest.mark.parametrize('more', [[], ['--dry-run']], ids=['train', 'dry-run'])
@pytest.mark.parametrize(('name', 'value'), [('WORLD_SIZE', '2'), ('TORCHELASTIC_RUN_ID', 'none')])
def test_a_process_of_torchrun_without_launcher(refusal, monkeypatch, name, value, more):
    monkeypatch.setenv(name, value)
    assert 'use tools/dist_train.sh, or add --launcher pytorch' in refusal(*more)
    assert call_tool('test', TUNE, 'missing.pth') == 2


def test_a_dry_run_knows_the_start_weights(run, tmp_path, capsys):
    """Those of --init, and those that the run in the folder started from."""
    assert call('--work-dir', tmp_path / 'a', '--init', run / 'epoch_1.pth') == 0
    for more in ([], ['--resume'], ['--resume', tmp_path / 'a']):
        assert call('--dry-run', '--work-dir', tmp_path / 'a', '--init', run / 'epoch_1.pth', *more) == 0
    capsys.readouterr()
    assert call('--dry-run', '--work-dir', tmp_path / 'a') == 2
    assert f'is from another run: start weights {run}/epoch_1.pth [' in capsys.readouterr().err


def test_a_dry_run_refuses_the_folder_of_another_run(run, refusal, tmp_path, capsys):
    before = sorted(run.rglob('*'))
    other = ['optim_wrapper.optimizer.lr=0.5']
    line = refusal('--dry-run', '--work-dir', run, options=other)
    assert 'already holds checkpoints, and epoch_1.pth is from another run: optim_wrapper.optimizer.lr 0.001' in line
    for resume in (['--resume'], ['--resume', run / 'epoch_1.pth']):
        line = refusal('--dry-run', '--work-dir', run, *resume, options=other)
        assert 'epoch_1.pth is from a run with another config: optim_wrapper.optimizer.lr 0.001, here 0.5' in line
    line = refusal('--dry-run', '--resume', run / 'epoch_1.pth', options=['randomness.seed=9'])
    assert 'epoch_1.pth is from another run: seed 0, here 9' in line
    line = refusal('--dry-run', '--resume', run, options=['train_dataloader.dataset.indices=64'])
    assert 'train_dataloader.dataset.indices 32, here 64' in line
    for args in (['--move-aside'], ['--resume', '--resume-changed']):
        assert call('--dry-run', '--work-dir', run, *args, options=other) == 0
    for args in ([], ['--resume'], ['--resume', run / 'epoch_1.pth']):
        assert call('--dry-run', '--work-dir', run, *args) == 0
    assert sorted(run.rglob('*')) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('resume', [[], ['--resume']], ids=['first', 'requeued'])
def test_a_requeued_run_without_checkpoints_starts_from_the_same_weights(run, tmp_path, resume):
    """A job that is requeued before its first save gets ``--resume`` and must not start from random weights."""
    options = [f'load_from={run / "epoch_1.pth"}', 'model.backbone.frozen=True']
    assert call('--work-dir', tmp_path, *resume, options=options) == 0
    ours, theirs = (read_checkpoint(folder / 'epoch_1.pth') for folder in (tmp_path, run))
    key = 'backbone.blocks.0.mlp.fc1.weight'
    assert torch.equal(ours['state_dict'][key], theirs['state_dict'][key])
    assert ours['meta']['epoch'] == 1, 'a new run'


def test_a_run_with_checkpoints_resumes_and_not_from_load_from(run, tmp_path):
    options = [f'load_from={run / "epoch_1.pth"}']
    assert call('--work-dir', tmp_path, options=options) == 0
    shutil.copy(tmp_path / 'epoch_1.pth', tmp_path / 'kept')
    assert call('--work-dir', tmp_path, '--resume', options=options) == 0
    ours, kept = (read_checkpoint(tmp_path / name) for name in ('epoch_1.pth', 'kept'))
    assert all(torch.equal(value, kept['state_dict'][key]) for key, value in ours['state_dict'].items())
