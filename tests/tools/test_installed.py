"""A wheel, installed in an environment of its own: what it holds, and its commands in empty folders."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.doctor_versions import installed_packages, read_lock

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ('bootmae', 'configs', 'results', 'suites', 'tools')
FILES = ('LICENSE', 'metafile.yml', 'model-index.yml', 'pyproject.toml', 'requirements.lock')
FOR_MAINTAINERS = ('setup_env.py', 'zoo.py')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since building leaves files in the source tree."""
    copy = tmp_path_factory.mktemp('source')
    for name in FOLDERS:
        ignored = shutil.ignore_patterns('__pycache__', '*.egg-info')
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(REPOSITORY / name, copy)
    (copy / 'tools' / '__pycache__').mkdir()
    (copy / 'tools' / '__pycache__' / 'startup.pyc').touch()
    options = ['--no-deps', '--no-build-isolation', '--no-index', '-q']
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', *options, '-w', copy / 'dist', copy], check=True)
    return next((copy / 'dist').glob('*.whl'))


class Installation:
    """A virtual environment with the wheel, which uses the other packages of this environment.

    It lies in the repository of another project, as a user's environment may do.
    """

    def __init__(self, folder: Path, wheel: Path):
        subprocess.run(['git', 'init', '-q', folder], check=True)
        author = ['-c', 'user.name=x', '-c', 'user.email=x@x']
        subprocess.run(['git', '-C', folder, *author, 'commit', '-q', '--allow-empty', '-m', 'other'], check=True)
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'env'], check=True)
        self.bin = folder / 'env' / 'bin'
        self.packages = next((folder / 'env').glob('lib/python3*/site-packages'))
        # the .pth files there are not read, so that an editable installation of this repository is not found
        others = dict.fromkeys(sysconfig.get_path(name) for name in ('purelib', 'platlib'))
        (self.packages / 'others.pth').write_text('\n'.join(others))
        pip = [sys.executable, '-m', 'pip', '--python', self.bin / 'python']
        subprocess.run([*pip, 'install', '-q', '--no-deps', '--no-index', wheel], check=True)
        self.env = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTHON')}
        self.env |= dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        self.files = self.list_files()

    def list_files(self) -> set[Path]:
        return {path for path in self.packages.rglob('*') if '__pycache__' not in path.parts}

    def run(self, *command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
        """Run a command of the environment, which must succeed and write nothing into the environment."""
        words = [self.bin / command[0], *map(str, command[1:])]
        done = subprocess.run(words, cwd=cwd, env=self.env | env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.list_files() == self.files
        return done


@pytest.fixture(scope='module')
def installation(tmp_path_factory, wheel) -> Installation:
    return Installation(tmp_path_factory.mktemp('project'), wheel)


def test_what_the_wheel_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    for folder in ('configs', 'suites', 'tools'):
        found = {name.removeprefix('bootmae/.mim/') for name in modes if name.startswith(f'bootmae/.mim/{folder}/')}
        files = {path for path in (REPOSITORY / folder).rglob('*.*') if '__pycache__' not in path.parts}
        wanted = {path.relative_to(REPOSITORY).as_posix() for path in files if path.is_file()}
        assert found == {
            name for name in wanted if Path(name).name not in FOR_MAINTAINERS and not name.startswith('tools/pages/')
        }
    assert all(mode & 0o100 for name, mode in modes.items() if name.endswith('.sh'))
    assert {'bootmae/py.typed', 'bootmae/.mim/results/published.csv', 'bootmae/.mim/requirements.lock'} <= set(modes)
    assert {name.split('/')[0] for name in modes} == {'bootmae', 'bootmae-0.1.0.dist-info'}


def test_openmmlab_finds_the_models(installation):
    """As mmengine and mim look for them: model-index.yml names metafiles, and these name configs."""
    mim = installation.packages / 'bootmae' / '.mim'
    imports = yaml.safe_load((mim / 'model-index.yml').read_text())['Import']
    models = [model for name in imports for model in yaml.safe_load((mim / name).read_text())['Models']]
    assert len(models) > 10
    assert all((mim / model['Config']).is_file() for model in models)


def test_doctor(installation, tmp_path):
    wanted, here = read_lock(REPOSITORY)[0], installed_packages()
    if any(here.get(name) != wanted[name] for name in ('torch', 'onedl-mmcv')):
        pytest.skip('another stack than that of the lock: there may be faults')
    done = installation.run('bootmae', 'doctor', cwd=tmp_path)
    assert '0 faults' in done.stdout
    assert f'{tmp_path / "work_dirs"} is writable' in done.stdout
    assert '.venv' not in done.stdout, 'the environment of a checkout'
    assert not list(tmp_path.iterdir())


def test_train(installation, tmp_path):
    installation.run('bootmae', 'train', 'bootmae_debug', cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['work_dirs']
    facts = read_checkpoint(tmp_path / 'work_dirs' / 'bootmae_debug' / 'epoch_2.pth')['meta']['bootmae']
    assert facts['config'] == 'configs/pretrain/bootmae_debug.py'
    assert facts['commit'] == '', 'the surrounding repository is not ours'


def test_suite(installation, tmp_path):
    suite = 'methods: [bootmae]\nseeds: [0]\npretrain: configs/pretrain/{method}_debug.py\n'
    (tmp_path / 'my.yaml').write_text(suite)
    done = installation.run('bootmae', 'suite', 'my.yaml', '--dry-run', cwd=tmp_path)
    assert 'pretrain/bootmae-0  waiting  configs/pretrain/bootmae_debug.py' in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['my.yaml']


def test_a_foreign_project(installation, tmp_path):
    """Its config inherits one of ours through our commands and, with an import, in plain mmengine."""
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'bootmae::cls/bootmae_debug_finetune.py'\ntrain_cfg = dict(max_epochs=3)\n"
    )
    done = installation.run('bootmae', 'train', 'mine.py', '--dry-run', cwd=tmp_path)
    assert [line.split() for line in done.stdout.splitlines() if line.startswith('epochs')] == [['epochs', '3']]
    (tmp_path / 'plain.py').write_text("_base_ = __import__('bootmae.registry') and 'bootmae::seg/upernet_debug.py'\n")
    code = 'import bootmae, mmengine; print(bootmae.__file__, mmengine.Config.fromfile("plain.py").model.type)'
    done = installation.run('python', '-c', code, cwd=tmp_path)
    assert done.stdout.split() == [str(installation.packages / 'bootmae' / '__init__.py'), 'EncoderDecoder']
    assert {path.name for path in tmp_path.iterdir()} == {'mine.py', 'plain.py'}


def test_launch_scripts(installation, tmp_path):
    """A script that prints its arguments replaces Python."""
    echo = tmp_path / 'echo_python'
    echo.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" "PYTHONPATH=${PYTHONPATH-}"\n')
    echo.chmod(0o755)
    done = installation.run('bootmae', 'dist_train', 'bootmae_debug', 2, cwd=tmp_path, PYTHON=str(echo))
    package = installation.packages / 'bootmae'
    launch, *_, tool, config, _, _, path = done.stdout.splitlines()
    assert (launch, tool) == (str(package / 'distributed/launch.py'), str(package / '.mim/tools/train.py'))
    assert Path(launch).is_file()
    assert (config, path) == ('bootmae_debug', 'PYTHONPATH=')
