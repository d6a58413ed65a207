"""The bootmae command does what tools/NAME.py does."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from calling import call_tool

from bootmae import __version__
from bootmae.__main__ import NOT_COMMANDS, commands, main

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def path_and_arguments(monkeypatch):
    """Restore what a command changes."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'argv', list(sys.argv))


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return end.value.code


def without_packages(*arguments: str) -> subprocess.CompletedProcess:
    """Run the command with a Python that has no package but this one."""
    command = [sys.executable, '-S', '-m', 'bootmae', *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=dict(PATH='/usr/bin:/bin'))


def test_help_lists_every_command_and_imports_no_package():
    done = without_packages('--help')
    assert done.returncode == 0, done.stderr
    listed = dict(line.split(None, 1) for line in done.stdout.splitlines() if line.startswith('  '))
    assert set(listed) == {
        path.stem for path in (REPOSITORY / 'tools').glob('*.*') if path.suffix in ('.py', '.sh')
    } - set(NOT_COMMANDS)
    assert listed['dist_train'] == 'Train on the GPUs of this machine, or with CPU processes if it has none'
    for name, file in commands().items():
        if file.suffix == '.py':
            assert ast.get_docstring(ast.parse(file.read_text())).startswith(listed[name])


@pytest.mark.parametrize('arguments, text', [([], 'usage: bootmae COMMAND'), (['--version'], f'bootmae {__version__}')])
def test_what_needs_no_command(capsys, arguments, text):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(text)


@pytest.mark.parametrize(
    'name, remedy',
    [
        ('tran', 'did you mean train?'),
        ('verify-dat', 'did you mean verify_data?'),
        ('xyz', 'bootmae --help lists all'),
        ('setup_env', 'bootmae --help lists all'),
    ],
)
def test_an_unknown_command(capsys, name, remedy):
    assert main([name]) == 2
    assert capsys.readouterr().err == f'error: there is no command {name.replace("-", "_")}: {remedy}\n'


def test_a_command_does_what_its_tool_does(capsys):
    assert call('plan', 'bootmae_debug', '--json') == 0
    printed = capsys.readouterr().out
    assert call_tool('plan', 'bootmae_debug', '--json') == 0
    assert printed == capsys.readouterr().out
    assert call('plan', 'nothing') == 2
    assert capsys.readouterr().err.startswith('error: no config nothing')


def test_dashes(capsys, tmp_path):
    assert call('hold-out', tmp_path / 'none', tmp_path / 'out') == 2
    assert capsys.readouterr().err.startswith('error: ')


def test_usage_and_help_name_the_command(capsys):
    assert call('knn', '--help') == 0
    text = capsys.readouterr().out
    assert text.startswith('usage: bootmae knn [-h]')
    assert '\n    bootmae knn configs/cls/bootmae_vitb_finetune.py' in text
    assert call('convert_checkpoint') == 2
    assert capsys.readouterr().err.startswith('usage: bootmae convert_checkpoint ')


def test_shell_scripts_run_with_this_python(monkeypatch):
    """In place of this process, so that signals reach the launcher."""
    called = []
    monkeypatch.setattr(os, 'execvp', lambda *call: called.append(call) or sys.exit(7))
    monkeypatch.delenv('PYTHON', raising=False)
    assert call('dist-train', 'bootmae_vitb', 8) == 7
    script = str(REPOSITORY / 'tools' / 'dist_train.sh')
    assert called == [('bash', ['bash', script, 'bootmae_vitb', '8'])]
    assert os.environ.pop('PYTHON') == sys.executable


def test_a_python_without_the_packages():
    done = without_packages('train', 'bootmae_debug')
    assert done.returncode == 2
    assert 'has no torch and no mmengine: run ' in done.stderr
    assert done.stderr.count('\n') == 1
