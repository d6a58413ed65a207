"""Options of ``tools/suite.py``: none is ignored silently, and --redo deletes nothing before all checks have passed."""

import os
import sys
from pathlib import Path

import pytest
from calling import call_tool
from test_spec import cells_of

from bootmae.results.rows import COLUMNS
from bootmae.suite import command
from bootmae.suite.cells import Cell
from bootmae.suite.job_state import DONE, state_of

PRETRAIN = {'config': 'configs/pretrain/{method}_debug.py'}
CHANGED = PRETRAIN | {'options': {'train_cfg.max_epochs': 7}}
KEYS = dict(methods=['mae', 'bootmae'], seeds=[0], tasks={'knn': {'config': 'configs/cls/bootmae_debug_finetune.py'}})
MAE = ['pretrain/mae-0', 'knn/mae-0']


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Writes the file of a small suite and runs it with these options; the cells only note that they ran."""
    tmp_path = tmp_path / 'suite'
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, 'ForkServer', lambda *_: None)
    monkeypatch.setattr(command, 'finish', lambda every, *_: print('report'))

    def commands(cell: Cell, gpus: int, slurm: str | None = None) -> list[list[str]]:
        if (tmp_path / 'fail').exists():
            return [[sys.executable, '-c', 'raise SystemExit(3)']]
        file = cell.rows_file if cell.task else cell.run / 'epoch_1.pth'
        file.parent.mkdir(parents=True, exist_ok=True)
        return [[sys.executable, '-c', f'open({str(file)!r}, "w").write({",".join(COLUMNS)!r})']]

    monkeypatch.setattr(Cell, 'commands', commands)

    def call(*options: object, pretrain: dict = PRETRAIN) -> int:
        cells_of(tmp_path, pretrain=pretrain, **KEYS)  # writes the file
        return call_tool('suite', tmp_path / 'toy.yaml', '--out', tmp_path, *options)

    return call


def undone(folder: Path) -> list[str]:
    return [cell.name for cell in cells_of(folder, pretrain=PRETRAIN, **KEYS) if state_of(cell) != DONE]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--redo knn --report-only', '--redo chooses cells to run, but --report-only runs none'),
        ('--only knn --report-only', '--only chooses cells to run, but --report-only runs none'),
        ('--redo knn --slurm gpu', '--redo with --slurm needs --submit, since it deletes results'),
        ('--submit', '--submit needs --slurm PARTITION'),
        ('--submit --dry-run', '--submit needs --slurm PARTITION'),
        ('--gpus 2 --slurm gpu', '--gpus has no effect with --slurm, '),
        ('--lanes 2 --slurm gpu --submit', '--lanes has no effect with --slurm, '),
        ('--dry-run --report-only', 'argument --report-only: not allowed with argument --dry-run'),
        ('--dry-run --slurm gpu', 'argument --slurm: not allowed with argument --dry-run'),
        ('--slurm gpu --report-only', 'argument --report-only: not allowed with argument --slurm'),
        ('--tflops 100', '--tflops is for the estimates of --dry-run: add --dry-run, or leave --tflops out'),
        ('--dry-run --tflops 0', '--tflops 0: give a number above 0'),
        ('--dry-run --tflops -5', '--tflops -5: give a number above 0'),
        ('--dry-run --tflops nan', '--tflops nan: give a number above 0'),
    ],
)
def test_options_without_an_effect_are_refused(capsys, options, message):
    assert call_tool('suite', 'none.yaml', *options.split()) == 2
    assert f'suite.py: error: {message}' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'), [('--gpus -1', '--gpus -1: give at least 0'), ('--lanes 0', '--lanes 0: give at least 1')]
)
def test_a_dry_run_refuses_what_a_run_refuses(suite, capsys, options, message):
    for mode in ([], ['--dry-run']):
        assert suite(*options.split(), *mode) == 2
        assert capsys.readouterr().err == f'error: {message}\n'


def test_lists_that_are_given_twice_are_joined(monkeypatch):
    seen = []
    monkeypatch.setattr(command, 'run_suite', seen.append)
    for name in ('only', 'redo', 'data'):
        for _ in range(2):
            assert call_tool('suite', 'x.yaml', f'--{name}', 'a', 'b', f'--{name}', 'c') == 0
            assert list(map(str, getattr(seen[-1], name))) == ['a', 'b', 'c']


def test_redo_deletes_only_what_is_run_again(suite, tmp_path, capsys):
    folder = tmp_path / 'suite'
    assert suite('--gpus', 0) == 0
    capsys.readouterr()
    for options, message in (
        (['--redo', 'none', '--gpus', 0], "no cell is called 'none'"),
        (['--redo', 'none', '--dry-run'], "no cell is called 'none'"),
        (['--redo', 'knn', '--gpus', 99], '--gpus 99: this machine has'),
        (['--redo', 'knn', '--gpus', 0, '--lanes', 0], '--lanes 0: give at least 1'),
        (
            ['--redo', 'pretrain/mae-0', '--only', 'pretrain/mae-0', '--gpus', 0],
            '--redo would delete the results of knn/mae-0, and --only leaves them out of this run: add them to --only',
        ),
        (
            ['--redo', 'pretrain/mae-0', '--only', 'knn/bootmae-0', '--dry-run'],
            '--redo would delete the results of pretrain/mae-0, knn/mae-0, and --only leaves them out',
        ),
    ):
        assert suite(*options) == 2
        assert message in capsys.readouterr().err
        assert undone(folder) == []
    assert suite('--redo', 'pretrain/mae-0', '--dry-run', '--gpus', 0) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == '--redo would delete the results of pretrain/mae-0, knn/mae-0'
    assert [line.split()[0] for line in told.splitlines() if ' waiting ' in line] == MAE, 'their hours count'
    assert undone(folder) == []
    assert suite('--redo', 'pretrain/mae-0', '--only', 'knn/mae-0', '--gpus', 0) == 0
    assert '2 cells, 0 done before' in capsys.readouterr().out
    assert undone(folder) == []
    (folder / 'fail').touch()
    assert suite('--redo', 'knn/mae-0', '--gpus', 0) == 1
    assert '1 of 4 cells are not done; run the same command without --redo again' in capsys.readouterr().err
    assert undone(folder) == ['knn/mae-0']


def test_redo_of_changed_definitions(suite, tmp_path, capsys):
    """It is their remedy, also together with other cells and for a damaged cell."""
    folder = tmp_path / 'suite'
    assert suite('--gpus', 0) == 0
    capsys.readouterr()
    assert suite('--gpus', 0, '--redo', 'pretrain/mae-0', pretrain=CHANGED) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: 2 of 4 cells have results of another config')
    assert 'now: pretrain/bootmae-0, knn/bootmae-0. This command deletes them and those of --redo and' in error
    assert error.splitlines()[1].endswith(' --redo pretrain/mae-0 pretrain/bootmae-0')
    assert undone(folder) == []
    (folder / 'pretrain' / 'mae-0' / 'cell.json').write_text('{')
    for mode in (['--dry-run'], []):
        assert suite('--gpus', 0, '--redo', 'pretrain/mae-0', 'pretrain/bootmae-0', *mode, pretrain=CHANGED) == 0
    assert '4 cells, 0 done before' in capsys.readouterr().out


def test_a_folder_that_cannot_be_deleted_is_an_error(suite, tmp_path, capsys):
    """Here a link; its results would count as those of the new definition."""
    assert suite('--gpus', 0) == 0
    folder = tmp_path / 'suite' / 'knn' / 'mae-0'
    folder.rename(tmp_path / 'elsewhere')
    folder.symlink_to(tmp_path / 'elsewhere')
    assert suite('--gpus', 0, '--redo', 'knn/mae-0') == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: --redo cannot delete {folder} (Cannot call rmtree on a symbolic link): delete it')


def test_a_report_names_results_of_another_definition(suite, capsys):
    assert suite('--gpus', 0) == 0
    assert suite('--report-only') == 0
    told = capsys.readouterr()
    assert 'warning' not in told.err
    assert suite('--report-only', pretrain=CHANGED) == 0
    told = capsys.readouterr()
    assert told.out == 'report\n', 'it is written all the same'
    assert told.err.startswith('warning: the report includes old results: 4 of 4 cells have results of another config')
    assert told.err.splitlines()[1].endswith(' --redo pretrain/mae-0 pretrain/bootmae-0')
    assert suite('--gpus', 0, '--only', 'knn/mae-0', '--redo', 'pretrain/mae-0', pretrain=CHANGED) == 0
    told = capsys.readouterr()
    assert told.out.endswith('report\n')
    assert 'old results: 2 of 4 cells have' in told.err, 'also if --only leaves them out'
    assert 'now: pretrain/bootmae-0, knn/bootmae-0. ' in told.err


def test_slurm_jobs(suite, tmp_path, monkeypatch, capsys):
    """Only the report has pictures; --redo deletes when the jobs can be submitted."""
    folder, jobs = tmp_path / 'suite', tmp_path / 'jobs.txt'
    assert suite('--gpus', 0) == 0
    call = ['--slurm', 'gpu', '--submit', '--redo', 'knn/mae-0', '--no-pictures']
    with monkeypatch.context() as patch:
        patch.setattr('shutil.which', lambda name: None)
        assert suite(*call) == 2
    assert '--submit: there is no sbatch on this machine: use a login node' in capsys.readouterr().err
    assert undone(folder) == []
    sbatch = tmp_path / 'bin' / 'sbatch'
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {jobs}\nwc -l < {jobs}\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv('PATH', f'{sbatch.parent}:{os.environ["PATH"]}')
    assert suite(*call) == 0
    assert undone(folder) == ['knn/mae-0']
    job, report = jobs.read_text().splitlines()
    assert '--only knn/mae-0 --in-slurm gpu' in job
    assert '--no-pictures' not in job
    assert report.endswith('--report-only --no-pictures')
    capsys.readouterr()
    assert suite('--slurm', 'gpu') == 0
    assert 'pictures' not in capsys.readouterr().out
