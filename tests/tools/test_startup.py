"""Tools say what is wrong in one line, from any folder, with any Python, and when Ctrl-C ends them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calling import call_tool

from bootmae.commands.cli import main
from bootmae.config.steps import training_config
from bootmae.distributed.exits import INTERRUPTED, MESSAGES

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


def test_a_python_without_the_packages_in_dist_train(tmp_path):
    """In a copy of the repository without .venv."""
    (tmp_path / 'tools').mkdir()
    for name in ('dist_train.sh', 'startup.py'):
        shutil.copy(REPOSITORY / 'tools' / name, tmp_path / 'tools')
    (tmp_path / 'python3').write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / 'python3').chmod(0o755)
    code, said = run(tmp_path / 'tools' / 'dist_train.sh', DEBUG, 2, PATH=f'{tmp_path}:/usr/bin:/bin')
    assert (code, said.count('\n')) == (2, 1)
    assert 'has no torch and no mmengine' in said


def test_the_environment_of_the_repository_is_named(tmp_path):
    (tmp_path / 'tools').mkdir()
    shutil.copy(REPOSITORY / 'tools' / 'startup.py', tmp_path / 'tools')
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.touch()
    _, said = run(sys.executable, '-S', tmp_path / 'tools' / 'startup.py')
    assert said.endswith(f'run "source {tmp_path}/.venv/bin/activate" first, or use {python}\n')


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
