"""A work directory holds one run: another one is refused there, and --resume follows its own run."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from calling import call_tool
from test_train import FINETUNE, PRETRAIN, call

from bootmae.checkpoints import read_checkpoint, run_lock
from bootmae.checkpoints.folders import checkpoint_file, claim_folder
from bootmae.checkpoints.resume import check_identity
from bootmae.checkpoints.run_identity import RunIdentity
from bootmae.checkpoints.write import write_checkpoint
from bootmae.commands.train import run_identity
from bootmae.config.load import load_config
from bootmae.config.steps import training_config

CONFIGS = PRETRAIN.parents[1]
SMALL = ['train_dataloader.dataset.indices=32', 'val_dataloader.dataset.indices=32', 'train_cfg.max_epochs=2']
SAME = {'train_dataloader.dataset.indices': 32}


def finetune(work_dir: Path, *args, options=()) -> int:
    return call('train', FINETUNE, '--work-dir', work_dir, *args, options=[*SMALL, *options])


def identity(config: Path, init: str | None = None, **options) -> RunIdentity:
    cfg, batch = training_config(str(config), options, init=init)
    return run_identity(load_config(config, options), cfg, batch)


def weights(path: Path) -> dict:
    return read_checkpoint(path)['state_dict']


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """Folder with the encoders A.pth and B.pth, and with fine-tuning runs from them in ``a`` and ``b``."""
    folder = tmp_path_factory.mktemp('runs')
    assert call('train', PRETRAIN, '--work-dir', folder / 'pretrained', options=['train_cfg.max_epochs=1']) == 0
    content = read_checkpoint(folder / 'pretrained' / 'epoch_1.pth')
    for name in 'AB':
        write_checkpoint(folder / f'{name}.pth', content)
        content['state_dict'] = {key: value + 0.01 for key, value in content['state_dict'].items()}
        assert finetune(folder / name.lower(), '--init', folder / f'{name}.pth') == 0
    return folder


@pytest.fixture
def work(runs, tmp_path) -> Path:
    """A copy of the work directory of the run from A.pth."""
    return Path(shutil.copytree(runs / 'a', tmp_path / 'work'))


def refusal(capsys, *args, options=()) -> str:
    """The only line that a refused run prints."""
    assert finetune(*args, options=['log_level=INFO', *options]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    return err.rstrip('\n')


def test_another_run_is_refused(runs, work, capsys):
    """With and without --resume. One line names what differs and what to do, and no log precedes it."""
    before = sorted(work.rglob('*'))
    other = r'start weights .*A.pth \[[0-9a-f]{12}\], here .*B.pth \[[0-9a-f]{12}\]'
    line = refusal(capsys, work, '--init', runs / 'B.pth')
    start = rf'error: {work} already holds checkpoints, and epoch_1.pth is from another run: '
    assert re.fullmatch(start + other + r'\. Use another --work-dir, or --move-aside .* with --resume', line)
    assert sorted(work.rglob('*')) == before
    line = refusal(capsys, work, '--init', runs / 'B.pth', '--resume', '--resume-changed')
    assert re.fullmatch(rf'error: .*/epoch_2.pth is from another run: {other}.*', line)
    line = refusal(capsys, work, '--resume', work / 'epoch_1.pth', options=['randomness.seed=1'])
    assert re.fullmatch(r'error: .*another run: seed 0, here 1; start weights .*A.pth .*, here none.*', line)


@pytest.mark.parametrize(
    'options, difference',
    [
        ({}, 'start weights .*A.pth .*, here none'),
        ({'randomness.seed': 1}, 'seed 0, here 1'),
        ({'train_cfg.max_epochs': 3}, '.*max_epochs 2, here 3'),
        ({'model.backbone.drop_path_rate': 0.3}, r'.*model.backbone.drop_path_rate \(not set\), here 0.3'),
        ({'train_dataloader.dataset.indices': 64}, r'.*train_dataloader.dataset.indices 32, here 64'),
        ({'optim_wrapper.optimizer.lr': 0.1}, '.*optim_wrapper.optimizer.lr 0.001, here 0.1'),
    ],
)
def test_what_makes_another_run(runs, options, difference):
    with pytest.raises(ValueError, match=f'epoch_1.pth is from another run: {difference}'):
        claim_folder(runs / 'a', identity(FINETUNE, **SAME | options))


def test_the_same_run_may_start_again(runs):
    """Whatever its workers, processes, log and precision are."""
    free = {
        'train_dataloader.num_workers': 1,
        'train_dataloader.batch_size': 16,
        'default_hooks.logger.interval': 7,
        'optim_wrapper.type': 'AutocastOptimWrapper',
        'optim_wrapper.optimizer.fused': False,
        'val_dataloader.batch_size': 8,
        'work_dir': 'elsewhere',
        'compile': True,
    }
    ours = identity(FINETUNE, init=str(runs / 'A.pth'), **SAME, **free)
    note = claim_folder(runs / 'a', ours)
    assert 'holds checkpoints of this same run (epoch_1.pth, epoch_2.pth)' in note
    assert claim_folder(runs / 'nothing', ours) == ''


def test_resume_follows_its_own_run(runs, tmp_path, capsys):
    """In a folder of an older version with files of both runs, where the other run has more iterations."""
    work = tmp_path / 'work'
    work.mkdir()
    shutil.copy(runs / 'a' / 'epoch_2.pth', work)
    shutil.copy(runs / 'b' / 'epoch_1.pth', work / 'step_1.pth')
    assert finetune(work, '--init', runs / 'B.pth', '--resume', options=['log_level=WARNING']) == 0
    assert 'skipped epoch_2.pth: it is from another run (start weights' in capsys.readouterr().out
    theirs = weights(runs / 'b' / 'epoch_2.pth')
    assert all(torch.equal(value, theirs[key]) for key, value in weights(work / 'epoch_2.pth').items())


def test_changes_that_are_no_other_run(runs, work):
    """A run on two processes' share of the batch, with workers and in bf16; and longer, on request."""
    free = [
        'train_dataloader.num_workers=1',
        'train_dataloader.batch_size=16',
        'optim_wrapper.type=AutocastOptimWrapper',
    ]
    longer = ['--init', runs / 'A.pth', '--resume', '--resume-changed']
    assert finetune(work, *longer[:3], options=free) == 0
    assert finetune(work, *longer, options=['train_cfg.max_epochs=3']) == 0
    assert read_checkpoint(work / 'epoch_3.pth')['meta']['identity']['facts']['max_epochs'] == 3


def test_old_checkpoints_are_moved_aside(runs, work):
    old = weights(work / 'epoch_2.pth')
    assert finetune(work, '--init', runs / 'B.pth', '--resume', '--move-aside') == 2
    assert finetune(work, '--init', runs / 'B.pth', '--move-aside') == 0
    moved = weights(work / 'earlier_1' / 'epoch_2.pth')
    assert all(torch.equal(value, moved[key]) for key, value in old.items())
    assert sorted(path.name for path in (work / 'earlier_1').iterdir()) == [
        'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint'
    ]  # fmt: skip
    theirs = weights(runs / 'b' / 'epoch_2.pth')
    assert all(torch.equal(value, theirs[key]) for key, value in weights(work / 'epoch_2.pth').items())


def test_a_file_that_does_not_record_its_run(runs, work, capsys):
    """It resumes with a note; a new run among such files is refused, since it may be another one."""
    (work / 'epoch_2.pth').unlink()
    content = read_checkpoint(work / 'epoch_1.pth')
    del content['meta']['identity']
    write_checkpoint(work / 'epoch_1.pth', content)
    a, b = (identity(FINETUNE, init=str(runs / f'{name}.pth'), **SAME) for name in 'AB')
    with pytest.raises(ValueError, match='epoch_1.pth is from a run that it does not record.* with --resume'):
        claim_folder(work, a)
    with pytest.raises(ValueError, match='another run: start weights'):
        check_identity(content['meta'], 'epoch_1.pth', b, {})
    assert finetune(work, '--init', runs / 'A.pth', '--resume', options=['log_level=WARNING']) == 0
    assert 'epoch_1.pth is of an older version and does not record its run' in capsys.readouterr().out
    theirs = weights(runs / 'a' / 'epoch_2.pth')
    assert all(torch.equal(value, theirs[key]) for key, value in weights(work / 'epoch_2.pth').items())


@pytest.mark.parametrize('flags', [(), ('--resume',), ('--move-aside',), ('--dry-run',)])
def test_a_folder_in_which_another_process_trains(runs, work, capsys, monkeypatch, flags):
    monkeypatch.setattr(run_lock, 'locked', lambda file: False)
    monkeypatch.setattr(run_lock, 'PATIENCE', 0.0)
    (work / 'train.lock').write_text('process 7 on node3, since 2026-11-01 10:00:00\n')
    before = sorted(work.rglob('*'))
    line = refusal(capsys, work, '--init', runs / 'A.pth', *flags)
    assert line.startswith(
        f'error: {work}: process 7 on node3, since 2026-11-01 10:00:00, is training here, and a second'
    )
    assert sorted(work.rglob('*')) == before


@pytest.mark.parametrize('config', ['pretrain/mae_debug.py', 'seg/upernet_debug.py', 'det/mask_rcnn_debug.py'])
def test_all_kinds_of_runs(config, tmp_path, capsys):
    other = identity(CONFIGS / config, None, **{'randomness.seed': 3, 'model.backbone.drop_path_rate': 0.2})
    meta = dict(epoch=1, iter=5, seed=3, identity=other.record())
    write_checkpoint(tmp_path / 'iter_5.pth', dict(meta=meta, state_dict={}, optimizer={}))
    assert call_tool('train', CONFIGS / config, '--work-dir', tmp_path) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r'error: .*iter_5.pth is from another run: seed 3, here 0; model.backbone.drop_path_rate 0.2, ', line
    )


# --- a folder instead of a file ---


def test_a_folder_stands_for_its_newest_checkpoint(runs, tmp_path, capsys):
    said = []
    (tmp_path / 'mixed').mkdir()
    shutil.copy(runs / 'a' / 'epoch_2.pth', tmp_path / 'mixed')
    assert checkpoint_file(str(tmp_path / 'mixed'), said.append) == str(tmp_path / 'mixed' / 'epoch_2.pth')
    shutil.copy(runs / 'a' / 'epoch_1.pth', tmp_path / 'mixed')
    assert checkpoint_file(str(tmp_path / 'mixed'), said.append) == str(tmp_path / 'mixed' / 'epoch_2.pth')
    assert len(said) == 2
    assert said[0].endswith('/mixed/epoch_2.pth, the newest checkpoint of its run')
    assert call_tool('convert_checkpoint', runs / 'a', '--to', 'timm', tmp_path / 'a.pth') == 0
    assert f'{runs}/a is a folder: taking {runs}/a/epoch_2.pth' in capsys.readouterr().out
    assert finetune(tmp_path / 'run', '--init', runs / 'pretrained', options=['train_cfg.max_epochs=1']) == 0
    record = read_checkpoint(tmp_path / 'run' / 'epoch_1.pth')['meta']['identity']
    assert record['init'] == str(runs / 'pretrained' / 'epoch_1.pth')
    capsys.readouterr()
    shutil.copy(runs / 'b' / 'epoch_1.pth', tmp_path / 'mixed')
    for tool, args in (
        ('test', [FINETUNE, tmp_path / 'mixed']),
        ('knn', [FINETUNE, '--init', tmp_path / 'mixed']),
        ('visualize', [tmp_path / 'mixed']),
        ('convert_checkpoint', [tmp_path / 'mixed', '--to', 'timm', tmp_path / 'b.pth']),
    ):
        assert call_tool(tool, *args) == 2
        message = f'error: {tmp_path}/mixed is a folder with checkpoints of several runs (epoch_1.pth, epoch_2.pth): '
        assert capsys.readouterr().err == f'{message}give a file\n', tool
    (tmp_path / 'empty').mkdir()
    assert call_tool('convert_checkpoint', tmp_path / 'empty', '--to', 'timm', tmp_path / 'b.pth') == 2
    assert 'empty: this is a folder; it has no .pth or .safetensors file' in capsys.readouterr().err
    shutil.copy(runs / 'A.pth', tmp_path / 'empty')
    assert checkpoint_file(str(tmp_path / 'empty'), said.append) == str(tmp_path / 'empty' / 'A.pth')


@pytest.fixture
def suite_runs(tmp_path) -> Path:
    """The folder of a suite with one run, and with a cell that trains nothing."""
    for cell in ('pretrain/mae-0/run', 'knn/mae-0'):
        (tmp_path / 'suite' / cell).mkdir(parents=True)
    add_run(tmp_path / 'suite' / 'pretrain/mae-0')
    return tmp_path / 'suite'


def add_run(cell: Path, *epochs: int) -> None:
    (cell / 'run').mkdir(parents=True, exist_ok=True)
    for epoch in epochs or (1, 2):
        meta = dict(epoch=epoch, iter=5 * epoch, seed=0)
        write_checkpoint(cell / 'run' / f'epoch_{epoch}.pth', dict(meta=meta, state_dict={}, optimizer={}))


@pytest.mark.parametrize('place', ['', 'pretrain', 'pretrain/mae-0', 'pretrain/mae-0/run'])
def test_a_folder_of_a_suite_stands_for_its_only_run(suite_runs, place):
    said: list[str] = []
    newest = suite_runs / 'pretrain/mae-0/run/epoch_2.pth'
    assert checkpoint_file(str(suite_runs / place), said.append) == str(newest)
    assert said == [f'{suite_runs / place} is a folder: taking {newest}, the newest checkpoint of its run']


def test_a_damaged_checkpoint_is_not_the_newest(suite_runs):
    newest = suite_runs / 'pretrain/mae-0/run/epoch_3.pth'
    newest.write_bytes((suite_runs / 'pretrain/mae-0/run/epoch_2.pth').read_bytes()[:-40])
    said: list[str] = []
    assert checkpoint_file(str(suite_runs), said.append).endswith('epoch_2.pth')
    assert said[0].startswith(f'skipped {newest}: ')


def test_the_runs_of_a_suite_are_listed(suite_runs, capsys):
    for cell in ('pretrain/mae-1', 'finetune/mae-0', 'finetune/untrained-0'):
        add_run(suite_runs / cell)
    assert call_tool('convert_checkpoint', suite_runs, '--to', 'timm', 'a.pth') == 2
    runs = 'finetune/{mae-0,untrained-0}, pretrain/{mae-0,mae-1}'
    assert capsys.readouterr().err == f'error: {suite_runs} holds 4 runs, {runs}: give the folder of one\n'
    with pytest.raises(ValueError, match=r'suite/pretrain holds 2 runs, {mae-0,mae-1}: give the folder of one'):
        checkpoint_file(str(suite_runs / 'pretrain'))
    assert call_tool('convert_checkpoint', suite_runs / 'knn/mae-0', '--to', 'timm', 'a.pth') == 2
    assert 'Give the path of one file, or the folder of a run' in capsys.readouterr().err


def test_a_rehearsal_takes_a_folder(runs, tmp_path, capsys):
    options = ['train_dataloader.dataset.indices=32']
    for init in (runs / 'pretrained', tmp_path):
        code = call('train', FINETUNE, '--dry-run', '--init', init, options=options)
        assert code == (0 if init != tmp_path else 2)
    assert f'taking {runs}/pretrained/epoch_1.pth' in capsys.readouterr().out
