"""tools/train.py: starting weights, resuming, batch, and one line for each error a user can make."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calling import call_tool

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.cli import main
from bootmae.distributed.exits import Progress

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / 'configs'
PRETRAIN, FINETUNE = CONFIGS / 'pretrain' / 'bootmae_debug.py', CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
COUNT = itertools.count()
QUIET = ['log_level=ERROR', 'train_dataloader.dataset.indices=64']


def call(tool: str, *args, options=()) -> int:
    """Each run gets its own name, since mmengine keeps runs by name."""
    return call_tool(tool, *args, '--cfg-options', f'experiment_name=train_{next(COUNT)}', *QUIET, *options)


def scalars(work_dir: Path) -> list[dict]:
    """What the last run in a work directory logged, step by step."""
    path = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(line) for line in path.read_text().splitlines()]


def forget_logs(work_dir: Path) -> None:
    """A second run within the same second would write into the log folder of the first."""
    for folder in work_dir.glob('*/vis_data'):
        shutil.rmtree(folder)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory) -> Path:
    """Work directory of a run of the debug pretraining: 2 epochs of 2 iterations."""
    work_dir = tmp_path_factory.mktemp('pretrained')
    assert call('train', PRETRAIN, '--work-dir', work_dir) == 0
    return work_dir


# --- what a run leaves ---


def test_a_run_leaves_logs_and_checkpoints(pretrained):
    assert (pretrained / 'epoch_1.pth').is_file()
    assert (pretrained / 'epoch_2.pth').is_file()
    assert (pretrained / 'bootmae_debug.py').is_file()
    steps = scalars(pretrained)
    assert [step['step'] for step in steps] == [1, 2, 3, 4]
    assert {'loss', 'loss_pixel', 'loss_feature', 'feature_error', 'ema_decay', 'feature_weight', 'lr'} <= set(steps[0])
    assert [step['ema_decay'] for step in steps] == [0.9, 0.9, 0.99, 0.99]


def test_tensorboard_events_by_default(pretrained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(pretrained.glob('*/vis_data/events.out.tfevents.*'))
    assert len(files) == 1
    events = EventAccumulator(str(files[0])).Reload()
    assert {'loss', 'loss_pixel', 'loss_feature', 'lr'} <= set(events.Tags()['scalars'])
    assert [event.value for event in events.Scalars('loss')] == pytest.approx([s['loss'] for s in scalars(pretrained)])


def test_default_work_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call('train', PRETRAIN, options=['train_cfg.max_epochs=1']) == 0
    assert (tmp_path / 'work_dirs' / 'bootmae_debug' / 'epoch_1.pth').is_file()


def test_cfg_options(tmp_path):
    options = [
        'train_cfg.max_epochs=1',
        'model.backbone.arch.embed_dims=24',
        'train_dataloader.batch_size=16',
        'auto_scale_lr.base_batch_size=16',
        'custom_hooks.0.ema=[[0,0.75]]',
    ]
    assert call('train', PRETRAIN, '--work-dir', tmp_path, options=options) == 0
    assert read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']['backbone.cls_token'].shape == (1, 1, 24)
    assert [step['ema_decay'] for step in scalars(tmp_path)] == [0.75] * 4


# --- batch ---


def test_a_smaller_batch_accumulates(tmp_path):
    assert call('train', PRETRAIN, '--work-dir', tmp_path, options=['train_dataloader.batch_size=16']) == 0
    optimizer = read_checkpoint(tmp_path / 'epoch_2.pth')['optimizer']
    assert len(scalars(tmp_path)) == 8
    assert {int(state['step']) for state in optimizer['state'].values()} == {4}
    assert optimizer['param_groups'][0]['initial_lr'] == 1e-3


def test_auto_scale_lr(tmp_path):
    options = ['train_dataloader.batch_size=16']
    assert call('train', PRETRAIN, '--work-dir', tmp_path, '--auto-scale-lr', options=options) == 0
    optimizer = read_checkpoint(tmp_path / 'epoch_2.pth')['optimizer']
    assert {int(state['step']) for state in optimizer['state'].values()} == {8}
    assert optimizer['param_groups'][0]['initial_lr'] == 0.5e-3
    assert max(step['lr'] for step in scalars(tmp_path)) <= 0.5e-3


# --- starting weights ---


@pytest.mark.parametrize('source, prefix', [(None, 'backbone.'), ('online', 'backbone.'), ('momentum', 'momentum.')])
def test_init(pretrained, tmp_path, source, prefix):
    """A frozen backbone still has, at the end, the weights that it started with: those of the file."""
    args = ['--init', pretrained / 'epoch_2.pth'] + (['--source', source] if source else [])
    options = ['model.backbone.frozen=True', 'train_cfg.max_epochs=1', 'val_dataloader.dataset.indices=32']
    assert call('train', FINETUNE, '--work-dir', tmp_path, *args, options=options) == 0
    file = read_checkpoint(pretrained / 'epoch_2.pth')['state_dict']
    ours = read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    compared = [key for key in ours if key.startswith('backbone.') and 'fc_norm' not in key]
    assert len(compared) > 20
    assert all(torch.equal(ours[key], file[key.replace('backbone.', prefix)]) for key in compared)
    assert not torch.equal(file['backbone.blocks.0.mlp.fc1.weight'], file['momentum.blocks.0.mlp.fc1.weight'])


# --- resuming ---


@pytest.mark.parametrize('how', ['auto', 'file'])
def test_resume(pretrained, tmp_path, how):
    """In the same work directory, at the right epoch and iteration, towards the same weights."""
    shutil.copy(pretrained / 'epoch_1.pth', tmp_path)
    resume = ['--resume'] if how == 'auto' else ['--resume', tmp_path / 'epoch_1.pth']
    assert call('train', PRETRAIN, '--work-dir', tmp_path, *resume) == 0
    whole = scalars(pretrained)
    assert [(step['epoch'], step['step']) for step in scalars(tmp_path)] == [(2, 3), (2, 4)]
    assert [step['loss'] for step in scalars(tmp_path)] == [step['loss'] for step in whole[2:]]
    ours, theirs = (read_checkpoint(folder / 'epoch_2.pth') for folder in (tmp_path, pretrained))
    assert (ours['meta']['epoch'], ours['meta']['iter']) == (2, 4)
    assert all(torch.equal(value, theirs['state_dict'][key]) for key, value in ours['state_dict'].items())


def test_resume_takes_the_last_of_the_work_directory(pretrained, tmp_path):
    """And begins where there is none."""
    assert call('train', PRETRAIN, '--work-dir', tmp_path, '--resume') == 0
    assert [step['step'] for step in scalars(tmp_path)] == [1, 2, 3, 4]
    forget_logs(tmp_path)
    longer = ['train_cfg.max_epochs=3']
    assert call('train', PRETRAIN, '--work-dir', tmp_path, '--resume', options=longer) == 2
    assert call('train', PRETRAIN, '--work-dir', tmp_path, '--resume', '--resume-changed', options=longer) == 0
    assert [step['step'] for step in scalars(tmp_path)] == [5, 6]


# --- errors ---


def without_momentum(content):
    for key in [key for key in content['state_dict'] if key.startswith('momentum.')]:
        del content['state_dict'][key]


def only_weights(content):
    state = content['state_dict']
    content.clear()
    content['state_dict'] = state


# name: (arguments, options, what the line says after "error: ")
ERRORS = dict(
    config=([PRETRAIN.with_name('nothing.py')], [], r'no config .*nothing.py: there are .*bootmae_debug.py'),
    data=([PRETRAIN.with_name('bootmae_small_data.py')], [], 'roots=data/images does not exist'),
    batch=(
        [PRETRAIN],
        ['train_dataloader.batch_size=24'],
        r'1 GPU x 24 x accumulation 1 = 24, but the recipe.s batch is 32. Add --cfg-options '
        r'train_dataloader.batch_size=16 \(accumulation 2 follows\)',
    ),
    too_small_lr=(
        [PRETRAIN, '--auto-scale-lr'],
        ['train_dataloader.batch_size=1', 'param_scheduler.min_lr=1e-4'],
        'min_lr=0.0001 is not within 0..3.125e-05',
    ),
    statistics=(
        [CONFIGS / 'cls' / 'mae_demo_finetune.py', '--init', 'run.pth'],
        [],
        r'run.pth was made with mean \[127.5, .* but the config normalizes with mean \[123.675',
    ),
    init_of_pretraining=(
        [PRETRAIN, '--init', 'run.pth'],
        ['model.backbone.arch.depth=1', 'model.feature_decoder.tap=0'],
        'run.pth was not loaded into the backbone: it has 2 blocks',
    ),
    init_missing=([FINETUNE, '--init', 'missing.pth'], [], 'no checkpoint missing.pth'),
    init_other_size=(
        [FINETUNE, '--init', 'run.pth'],
        ['model.backbone.arch.depth=3'],
        'run.pth was not loaded into the backbone: it has 2 blocks',
    ),
    resume_missing=([PRETRAIN, '--resume', 'missing.pth'], [], 'no checkpoint missing.pth'),
    resume_without_momentum=(
        [PRETRAIN, '--resume', 'no_momentum.pth'],
        [],
        'no_momentum.pth is not a checkpoint .* Its momentum encoder is missing',
    ),
    resume_of_weights=([PRETRAIN, '--resume', 'weights.pth'], [], 'weights.pth holds weights, not a run: .*--init'),
    resume_of_another_size=(
        [PRETRAIN, '--resume', 'run.pth'],
        ['model.backbone.arch.depth=1', 'model.feature_decoder.tap=0'],
        'run.pth is not a checkpoint of this config.s BootMAE',
    ),
    hook=([PRETRAIN], ['custom_hooks=[]'], '.* the momentum encoder never moves'),
)


@pytest.mark.parametrize('name', ERRORS)
def test_user_errors_are_one_line(pretrained, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for file, change in (('run', None), ('no_momentum', without_momentum), ('weights', only_weights)):
        content = torch.load(pretrained / 'epoch_2.pth', weights_only=False)
        if change:
            change(content)
        torch.save(content, f'{file}.pth')
    args, options, message = ERRORS[name]
    assert call('train', *args, options=options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert re.match(f'error: {message}', lines[-1]), lines[-1]
    assert not any('Traceback' in line for line in lines)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--init', ''], 'argument 3 after --init is empty: is a variable of the shell not set?'),
        (['--work-dir='], 'argument 2 (--work-dir=) is empty: is a variable of the shell not set?'),
    ],
)
def test_empty_arguments(capsys, words, message):
    """A run would start from random weights, or write elsewhere."""
    assert call_tool('train', FINETUNE, *words) == 2
    assert capsys.readouterr().err == f'error: {message}\n'


def test_traceback_on_request(monkeypatch, capsys):
    monkeypatch.setenv('BOOTMAE_TRACEBACK', '1')

    def command():
        raise ValueError('wrong')

    with pytest.raises(ValueError, match='wrong'):
        main(command)
    monkeypatch.delenv('BOOTMAE_TRACEBACK')
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: wrong\n'


class Killed(torch.utils.data.Dataset):
    """As if the machine had no memory for a data worker."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)


def out_of_gpu_memory():
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.')


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (out_of_gpu_memory, r'CUDA out of memory\. Tried to allocate 2.00 GiB\. Use a smaller batch_size of '),
        (lambda: torch.empty(1 << 60), r'.*t allocate memory: you tried .* Use a smaller batch_size of '),
        (lambda: list(torch.utils.data.DataLoader(Killed(), num_workers=1)), r'DataLoader worker .* fewer num_workers'),
    ],
)
def test_too_little_memory(monkeypatch, capsys, command, message):
    """In any step of a run."""
    monkeypatch.setattr(Progress, 'trained', True)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert re.match(f'error: {message}', capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize('given, code', [(None, 0), (0, 0), (1, 1)])
def test_exit_code_of_a_command(given, code):
    with pytest.raises(SystemExit) as end:
        main(lambda: given)
    assert end.value.code == code


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(Progress, 'trained', True)

    def command():
        raise KeyError('ours')

    with pytest.raises(KeyError):
        main(command)


def test_as_a_command(tmp_path):
    """From another folder, as a user calls it."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / 'tools' / 'train.py', 'configs/nothing.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: no config configs/nothing.py in {tmp_path} or {REPOSITORY}: see ')
