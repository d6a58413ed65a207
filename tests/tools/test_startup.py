"""Tools say what is wrong in one line, from any folder, with any Python, and when Ctrl-C ends them."""

import atexit
import errno
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calling import call_tool
from mmengine.config import Config

from bootmae.commands.cli import main
from bootmae.config.steps import training_config
from bootmae.distributed.exits import INTERRUPTED, MESSAGES, Progress
from bootmae.engine.runner.build import work_folder

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.name for path in (REPOSITORY / 'tools').glob('*.py'))
DEBUG = 'configs/pretrain/bootmae_debug.py'


def run(*command: object, **env: str) -> tuple[int, str]:
    """Run a command without the folders of this environment's packages; return its exit code and its stderr."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=dict(PATH='/usr/bin:/bin') | env)
    return done.returncode, done.stderr


@pytest.mark.parametrize('tool', [name for name in TOOLS if name not in ('doctor.py', 'setup_env.py')])
def test_a_python_without_the_packages(tool):
    """``-S`` hides the installed packages."""
    code, said = run(sys.executable, '-S', REPOSITORY / 'tools' / tool, 'x')
    assert code == 2
    assert re.fullmatch(r'error: \S+ has no torch and no mmengine: run "(source|make) .*\n', said)


@pytest.mark.parametrize('given', [False, True])
def test_a_python_without_the_packages_in_dist_train(tmp_path, given):
    """In a copy of the repository without .venv, and with PYTHON=..."""
    (tmp_path / 'tools').mkdir()
    for name in ('dist_train.sh', 'startup.py'):
        shutil.copy(REPOSITORY / 'tools' / name, tmp_path / 'tools')
    (tmp_path / 'python3').write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / 'python3').chmod(0o755)
    env = dict(PYTHON=str(tmp_path / 'python3')) if given else dict(PATH=f'{tmp_path}:/usr/bin:/bin')
    code, said = run(tmp_path / 'tools' / 'dist_train.sh', DEBUG, 2, **env)
    assert (code, said.count('\n')) == (2, 1)
    assert 'has no torch and no mmengine' in said


def test_the_environment_of_the_repository_is_named(tmp_path):
    (tmp_path / 'tools').mkdir()
    shutil.copy(REPOSITORY / 'tools' / 'startup.py', tmp_path / 'tools')
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.touch()
    command = [sys.executable, '-S', tmp_path / 'tools' / 'startup.py']
    assert run(*command)[1].count(f'run "make setup" in {tmp_path}, ') == 1, 'this user may not execute it'
    python.chmod(0o755)
    assert run(*command)[1].endswith(f'run "source {tmp_path}/.venv/bin/activate" first, or use {python}\n')


def test_no_folder_for_temporary_files():
    """A full /tmp; torch would say so in a traceback."""
    code = f"""
import sys, tempfile
sys.path.insert(0, {str(REPOSITORY / 'tools')!r})
tempfile._candidate_tempdir_list = lambda: ['/no/folder', '/proc']
import startup
"""
    message = (
        "error: [Errno 2] No usable temporary directory found in ['/no/folder', '/proc']: free some space there, or "
    )
    assert run(sys.executable, '-c', code) == (2, f'{message}export TMPDIR=/another/folder\n')


def test_a_tool_uses_the_package_beside_it(tmp_path):
    """Also if the package of another checkout is installed, as in this environment."""
    for folder in ('tools', 'bootmae'):
        (tmp_path / folder).mkdir()
    shutil.copy(REPOSITORY / 'tools' / 'startup.py', tmp_path / 'tools')
    (tmp_path / 'bootmae' / '__init__.py').touch()
    (tmp_path / 'tools' / 'tool.py').write_text('import startup, bootmae\nprint(bootmae.__file__)\n')
    env = dict(PATH='/usr/bin:/bin', PYTHONPATH=str(REPOSITORY))
    done = subprocess.run([sys.executable, tmp_path / 'tools' / 'tool.py'], capture_output=True, text=True, env=env)
    assert done.stdout == f'{tmp_path}/bootmae/__init__.py\n', done.stderr


def test_an_installed_package_names_its_lock(tmp_path):
    (tmp_path / '.mim' / 'tools').mkdir(parents=True)
    shutil.copy(REPOSITORY / 'tools' / 'startup.py', tmp_path / '.mim' / 'tools')
    _, said = run(sys.executable, '-S', tmp_path / '.mim' / 'tools' / 'startup.py')
    assert said.endswith(f'run "{sys.executable} -m pip install --no-deps -r {tmp_path}/.mim/requirements.lock"\n')


def test_another_working_directory(tmp_path, monkeypatch, capsys):
    """Paths of configs and suites work from any folder."""
    monkeypatch.chdir(tmp_path)
    assert call_tool('plan', DEBUG) == 0
    assert call_tool('plan', 'configs/pretrain/nothing.py') == 2
    line = capsys.readouterr().err
    assert line.startswith(f'error: no config configs/pretrain/nothing.py in {tmp_path} or {REPOSITORY}: ')
    assert call_tool('convert_checkpoint', 'work_dirs/x.pth', '--to', 'timm', 'y.pth') == 2
    assert capsys.readouterr().err.startswith(f'error: no checkpoint work_dirs/x.pth in {tmp_path}: use the path')


def interrupted() -> None:
    raise KeyboardInterrupt


def wrong() -> None:
    raise ValueError('wrong')


def end(command) -> int:
    with pytest.raises(SystemExit) as ended:
        main(command)
    return ended.value.code


def test_ctrl_c_is_one_line(capsys):
    assert end(interrupted) == INTERRUPTED == 130
    assert capsys.readouterr().err == 'stopped: Ctrl-C; nothing was saved\n'


def test_processes_of_a_run_leave_their_last_line_to_the_launcher(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MESSAGES, str(tmp_path))
    monkeypatch.setenv('RANK', '0')
    assert end(wrong) == 2
    assert capsys.readouterr().err == ''
    assert (tmp_path / '0').read_text() == 'error: wrong'


def test_limits_of_the_system(capsys, monkeypatch):
    """Open files and processes, in a step after the first one; as errors of torch, Python and the system."""
    monkeypatch.setattr(Progress, 'trained', True)
    files, processes = (
        ': run "ulimit -n 65536" first, or use ',
        ': this user has too many processes and threads: raise ',
    )
    torchs = RuntimeError('Too many open files. Communication with the workers is no longer possible. Please ...')
    for error, message in (
        (torchs, f'Too many open files{files}'),
        (OSError(errno.EMFILE, 'Too many open files', 'a.jpg'), f"[Errno 24] Too many open files: 'a.jpg'{files}"),
        (RuntimeError("can't start new thread"), f"can't start new thread{processes}"),
        (OSError(errno.EAGAIN, 'Resource temporarily unavailable'), f'temporarily unavailable{processes}'),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        assert end(fail) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.endswith('fewer num_workers of the data loader. A run continues with --resume\n')


def test_closed_and_broken_output_keeps_the_exit_code(monkeypatch):
    """Of a process of a distributed run, too: stdout was closed by the shell, and nobody reads stderr."""

    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', Broken())
    assert end(wrong) == 2
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(atexit, '_run_exitfuncs', lambda: None)
    monkeypatch.setattr(os, '_exit', leave)
    assert end(lambda: 0) == 0


def test_a_tilde_that_the_shell_has_left_is_the_home(monkeypatch, tmp_path):
    """bash does not replace it in --work-dir=~/runs."""
    words = ['a~', '~/x', '--work-dir=~/x', '--cfg-options', 'work_dir=~/x', 'a.b=~x', '~']
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['tool', *words])
    assert end(lambda: 0) == 0
    assert sys.argv[1:] == [word.replace('~/', f'{tmp_path}/') for word in words[:-1]] + [str(tmp_path)]
    assert work_folder(Config(dict(work_dir='~/x')), 'a.py') == f'{tmp_path}/x'


@pytest.mark.parametrize(
    'config, options, message',
    [
        (DEBUG, {'param_scheduler.warmup': 5}, r'param_scheduler.warmup=5 epochs, .* has 2 \(train_cfg.max_epochs=2\)'),
        (
            'configs/pretrain/bootmae_vitb.py',
            {'train_cfg.max_epochs': 10},
            'param_scheduler.warmup=40 epochs, .* has 10 ',
        ),
        (
            'configs/seg/upernet_debug.py',
            {'train_cfg.max_iters': 10},
            '.*warmup=20 iterations, .*train_cfg.max_iters=10',
        ),
    ],
)
def test_a_warm_up_that_is_longer_than_the_run(config, options, message):
    with pytest.raises(ValueError, match=f'{message}.*--cfg-options param_scheduler.warmup=N'):
        training_config(config, options)
