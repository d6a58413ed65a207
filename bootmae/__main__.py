"""The ``bootmae`` command, also ``python -m bootmae``: ``bootmae NAME ...`` does what ``tools/NAME.py ...`` does."""

import ast
import importlib.util
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from . import __version__
from .places import REPOSITORY, as_commands

TOOLS = REPOSITORY / 'tools'
NOT_COMMANDS = ('setup_env', 'startup', 'zoo')  # for the tools themselves and for maintainers, in a checkout


def commands() -> dict[str, Path]:
    """Return the file of each command by name."""
    files = [*TOOLS.glob('*.py'), *TOOLS.glob('*.sh')]
    return {file.stem: file for file in sorted(files) if file.stem not in NOT_COMMANDS}


def summary(file: Path) -> str:
    """Return the first sentence of a tool's docstring or, for a script, of its comment. Nothing is imported."""
    text = file.read_text(encoding='utf-8')
    words = ast.get_docstring(ast.parse(text)) if file.suffix == '.py' else text.partition('\n# ')[2]
    return words.partition('\n')[0].partition('. ')[0].rstrip('.:')


def overview() -> str:
    """Return the text of ``bootmae --help``."""
    lines = [f'  {name:20}{summary(file)}' for name, file in commands().items()]
    head = 'usage: bootmae COMMAND ...\n\nBootMAE pretraining for the OpenMMLab stack. Commands:\n'
    return '\n'.join([head, *lines, '\n`bootmae COMMAND --help` lists the options of a command.'])


def run_script(file: Path, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by a shell script that uses this Python."""
    os.environ.setdefault('PYTHON', sys.executable)
    os.execvp('bash', ['bash', str(file), *arguments])


def run_tool(name: str, file: Path, arguments: Sequence[str]) -> NoReturn:
    """Run a tool and exit with its code. Its usage and help name the command as it was typed."""
    sys.path.insert(0, str(TOOLS))  # as for a script: the tools import startup.py
    spec = importlib.util.spec_from_file_location(f'bootmae_{name}', file)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.__doc__ = as_commands(tool.__doc__)
    sys.argv = [f'bootmae {name}', *arguments]
    from .commands.cli import main as run

    run(tool.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and exit with its code.

    Returns:
        0 after ``--help`` and ``--version``, and 2 for an unknown command.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ['--help']
    if name in ('-h', '--help', 'help', '--version'):
        print(f'bootmae {__version__}' if name == '--version' else overview())
        return 0
    known, name = commands(), name.replace('-', '_')
    if name not in known:
        near = get_close_matches(name, known, 1)
        remedy = f'did you mean {near[0]}?' if near else 'bootmae --help lists all'
        print(f'error: there is no command {name}: {remedy}', file=sys.stderr)
        return 2
    file = known[name]
    if file.suffix == '.sh':
        run_script(file, rest)
    run_tool(name, file, rest)


if __name__ == '__main__':
    sys.exit(main())
