"""Test the suite with other Pythons, the newest torch and OpenMMLab's own releases, each installed from nothing.

nox                               # all sessions; each takes 6 GB and about 10 minutes on two cores
nox -s newest_torch               # one of them
nox -s 'lock-3.12' -- tests/models   # only these tests
"""

import re
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / 'tools'))

from setup_env import uv_settings  # noqa: E402

LOCK = 'requirements.lock'
CUDA = r'torch|torchvision|triton|nvidia-.*|cuda-.*'
ORIGINALS = ('mmengine==0.10.7', 'mmcv-lite==2.1.0', 'mmpretrain==1.2.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2')

nox.options.default_venv_backend = 'uv'


def install(session: nox.Session, without: str, *instead: str) -> None:
    """Install the lock, but other packages in place of those whose names match ``without``."""
    command = sys.executable, '-m', 'pip', 'config', 'list'
    session.env.update(uv_settings(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rest = Path(session.create_tmp()) / 'lock.txt'
    lines = (ROOT / LOCK).read_text().splitlines()
    rest.write_text('\n'.join(line for line in lines if not re.fullmatch(without, line.split('==')[0])))
    session.run_install('uv', 'pip', 'sync', '--build-constraints', LOCK, str(rest))
    if instead:
        session.install(*instead)
    session.install('--no-deps', '--no-build-isolation', '-e', '.')


def check(session: nox.Session) -> None:
    """Compare with the numbers of the authors' release, then run the quick tests."""
    session.run('python', 'tools/parity.py', *map(str, sorted((ROOT / 'tests' / 'golden').glob('*.npz'))))
    session.run('python', '-m', 'pytest', '-m', 'not slow', '-n', '2', '--dist', 'loadfile', *session.posargs)


@nox.session(python=['3.10', '3.11', '3.12'])
def lock(session: nox.Session) -> None:
    """The lock as it is."""
    install(session, '')
    check(session)


@nox.session(python='3.11')
def newest_torch(session: nox.Session) -> None:
    """The lock with the newest torch and torchvision."""
    install(session, CUDA, 'torch', 'torchvision')
    check(session)


@nox.session(python='3.11')
def originals(session: nox.Session) -> None:
    """The lock with the last releases of OpenMMLab in place of the maintained builds."""
    install(session, 'onedl-.*', '--no-deps', *ORIGINALS)
    check(session)
