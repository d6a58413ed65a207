"""Run a tool in the test process."""

import importlib.util
import sys

import pytest

from bootmae.commands.cli import main
from bootmae.results.provenance import REPOSITORY


def call_tool(tool: str, *args: object) -> int:
    """Run ``tools/<tool>.py`` with these arguments and return its exit code."""
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', REPOSITORY / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main(module.command)
    return end.value.code
