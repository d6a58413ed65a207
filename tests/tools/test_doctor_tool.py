"""tools/doctor.py as a user runs it: all is well here; with staged faults every one is named."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootmae.commands.doctor_versions import installed_packages, read_lock

REPOSITORY = Path(__file__).resolve().parents[2]
STAGED = {
    'torch': '2.14.0',
    'numpy': '1.26.4',
    'scipy': '1.11.4',
    'setuptools': '82.0',
    'transformers': '5.1.0',
    'mmcv': '2.2.0',
    'opencv-python': '4.12.0.88',
}


def doctor(*args, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, REPOSITORY / 'tools/doctor.py', *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.slow
def test_nothing_is_wrong_here():
    done = doctor()
    assert done.returncode == 0, done.stdout
    assert 'ok      training step on cpu loss ' in done.stdout
    assert '\n0 faults, ' in done.stdout


def test_staged_faults_are_all_named(tmp_path):
    """Packages that only seem to be installed, and a torch that is broken, so that no package gets far."""
    wanted, installed = read_lock(REPOSITORY)[0], installed_packages()
    if any(installed.get(name) != wanted[name] for name in ('torch', 'onedl-mmcv')):
        pytest.skip('another stack than that of the lock: there are other faults')
    for name, version in STAGED.items():
        folder = tmp_path / f'{name.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    for name in ('torch', 'bootmae'):
        (tmp_path / f'{name}.py').write_text('raise ImportError("undefined symbol: xyz")')
    (tmp_path / 'work').touch()
    done = doctor('--work-dir', tmp_path / 'work', PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    faults = {line.split()[1] for line in lines if line.startswith('FAULT')}
    assert faults == {'torch', 'numpy', 'scipy', 'setuptools', 'onedl-mmcv', 'opencv', 'work', 'import'}
    assert 'ImportError: undefined symbol: xyz' in done.stdout
    assert 'note    transformers' in done.stdout
    for before, after in itertools.pairwise(lines):
        if before.startswith('FAULT'):
            assert after.strip().startswith('-> '), f'{before} has no remedy'
