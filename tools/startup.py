"""What every tool does first: it finds the packages or says which Python has them, and ends in one line on Ctrl-C."""

from __future__ import annotations  # an older Python must be able to read this file

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
IS_INSTALLED = ROOT.name == '.mim'  # as in bootmae/places.py, which this Python may not find


def check_packages() -> None:
    """Exit with code 2 if this Python lacks torch or mmengine."""
    if not IS_INSTALLED:  # a tool uses the package beside it, also if another checkout is installed
        sys.path.insert(0, str(ROOT))
    missing = [name for name in ('torch', 'mmengine') if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = ROOT / '.venv' / 'bin' / 'python'
    remedy = (
        f'run "{sys.executable} -m pip install --no-deps -r {ROOT}/requirements.lock"'
        if IS_INSTALLED
        else f'run "source {ROOT}/.venv/bin/activate" first, or use {python}'
        if os.access(python, os.X_OK) and Path(sys.prefix) != ROOT / '.venv'
        else f'run "make setup" in {ROOT}, which creates .venv, then "source .venv/bin/activate"'
    )
    print(f'error: {sys.executable} has no {" and no ".join(missing)}: {remedy}', file=sys.stderr)
    sys.exit(2)


def check_temporary() -> None:
    """Exit with code 2 if no folder takes temporary files, which torch and the launcher need."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        print(f'error: {error}: free some space there, or export TMPDIR=/another/folder', file=sys.stderr)
        sys.exit(2)


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print Ctrl-C during the imports as one line, and any other error as usual."""
    if issubclass(kind, KeyboardInterrupt):
        print('stopped: Ctrl-C; nothing was saved', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


check_packages()
check_temporary()
sys.excepthook = report
