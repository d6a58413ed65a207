"""Where an installed package finds its files and writes its runs, beside a checkout."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from bootmae import places
from bootmae.results import provenance

REPOSITORY = Path(__file__).resolve().parents[1]
MIM = REPOSITORY / 'bootmae' / '.mim'


@pytest.fixture
def installed(tmp_path, monkeypatch) -> ModuleType:
    """places.py as it is in an installed package; the current folder is another one."""
    package = tmp_path / 'site' / 'bootmae'
    for name in ('tools', 'configs/pretrain'):
        (package / '.mim' / name).mkdir(parents=True)
    (package / '.mim' / 'configs' / 'pretrain' / 'x.py').touch()
    shutil.copy(places.__file__, package)
    (tmp_path / 'runs').mkdir()
    monkeypatch.chdir(tmp_path / 'runs')
    spec = importlib.util.spec_from_file_location('installed_places', package / 'places.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_installed_package_reads_its_own_folder_and_writes_to_the_current_one(installed, tmp_path):
    mim, runs = tmp_path / 'site' / 'bootmae' / '.mim', tmp_path / 'runs'
    assert (installed.IS_INSTALLED, installed.REPOSITORY, installed.runs_folder()) == (True, mim, runs)
    assert installed.from_anywhere('configs/pretrain/x.py') == mim / 'configs/pretrain/x.py'
    assert installed.from_anywhere('work_dirs') == Path('work_dirs')
    assert installed.our_config('bootmae::pretrain/x.py') == mim / 'configs/pretrain/x.py'


def test_paths_of_rows_are_the_same_in_both(installed, tmp_path):
    mim = tmp_path / 'site' / 'bootmae' / '.mim'
    assert installed.portable(mim / 'configs/pretrain/x.py') == 'configs/pretrain/x.py'
    assert places.portable(MIM / 'configs/pretrain/bootmae_vitb.py') == 'configs/pretrain/bootmae_vitb.py'
    assert installed.portable('work_dirs/a/epoch_1.pth') == 'work_dirs/a/epoch_1.pth'
    assert places.portable(REPOSITORY / 'work_dirs/a/epoch_1.pth') == 'work_dirs/a/epoch_1.pth'
    for module in (installed, places):
        assert module.portable('/elsewhere/a.pth') == 'a.pth'
        assert module.portable(None) == ''
        assert module.shown('/elsewhere/a.pth') == '/elsewhere/a.pth'


def test_commands_are_shown_as_they_are_typed(installed):
    text = 'run tools/knn.py CONFIG or tools/dist_train.sh CONFIG 8, not my_tools/x.py'
    assert installed.as_typed(text) == 'run bootmae knn CONFIG or bootmae dist_train CONFIG 8, not my_tools/x.py'
    assert places.as_typed(text) == text


def test_the_links_of_a_checkout_lead_to_its_top():
    links = [path for path in MIM.rglob('*') if path.is_symlink()]
    assert {path.name for path in links} >= {'configs', 'suites', 'tools', 'model-index.yml', 'metafile.yml'}
    for path in links:
        assert path.resolve() == REPOSITORY / path.relative_to(MIM)
        assert path.exists()
    assert (places.IS_INSTALLED, places.REPOSITORY) == (False, REPOSITORY)


def test_an_installed_package_has_no_commit(monkeypatch):
    """Its folder may lie in the repository of another project."""
    monkeypatch.setattr(provenance, 'IS_INSTALLED', True)
    monkeypatch.setattr(provenance.subprocess, 'run', lambda *args, **kwargs: pytest.fail('git was asked'))
    assert provenance.git_commit() == ''


NAMELESS = """
import os, pwd

def unknown(user):
    raise KeyError(f'uid not found: {user}')

pwd.getpwuid, allowed = unknown, os.access
os.access = lambda path, *args, **kwargs: path != '/' and allowed(path, *args, **kwargs)
import bootmae.suite.command, bootmae.registry
print(os.environ['LOGNAME'], os.environ['HOME'], os.environ['NUMBA_CACHE_DIR'], os.environ['MPLCONFIGDIR'])
"""


def test_a_user_without_a_name_and_a_home_imports_the_stack(tmp_path):
    """As in a container with --user: torch, yapf and numba would end every command."""
    env = dict(PATH=os.environ['PATH'], PYTHONPATH=str(REPOSITORY), TMPDIR=str(tmp_path), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', NAMELESS], capture_output=True, text=True, env=env)
    caches = tmp_path / f'bootmae_{os.getuid()}'
    assert done.stdout.split() == [f'user{os.getuid()}', '/', str(caches), str(caches)], done.stderr
    assert caches.stat().st_mode & 0o777 == 0o700


def test_a_user_with_a_home_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path))
    before = dict(os.environ)
    places.ensure_home()
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
