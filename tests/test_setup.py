"""The lock against pyproject.toml, and tools/setup_env.py in temporary folders, without any network."""

import ast
import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'tools/setup_env.py'
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
LOCK = (ROOT / 'requirements.lock').read_text()

spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)


# --- the lock ---


def locked(python: str, platform: str) -> dict[str, str]:
    """Version of each package that the lock holds for a Python and a system."""
    environment = dict(python_version=python, python_full_version=f'{python}.5', sys_platform=platform)
    lines = map(Requirement, LOCK.splitlines())
    found = [line for line in lines if line.marker is None or line.marker.evaluate(environment)]
    versions = {line.name: str(line.specifier).removeprefix('==') for line in found}
    assert len(versions) == len(found), 'a package is locked twice'
    return versions


@pytest.mark.parametrize('platform', ['linux', 'darwin'])
@pytest.mark.parametrize('python', setup_env.PYTHONS)
def test_lock_holds_what_pyproject_asks_for(python, platform):
    versions = locked(python, platform)
    extras = PROJECT['optional-dependencies']
    assert f'{PROJECT["name"]}[onnx]' in extras['dev']
    for wanted in map(Requirement, PROJECT['dependencies'] + extras['onnx'] + extras['dev']):
        if wanted.name == PROJECT['name']:
            continue
        assert versions[wanted.name] in wanted.specifier, f'{wanted} is not in requirements.lock; run: make lock'
    assert any(name.startswith('nvidia-') for name in versions) == (platform == 'linux')
    # transformers: see compat.py; opencv-python: see pyproject.toml
    assert not {'transformers', 'opencv-python'} & set(versions)


def test_pyproject_names_every_package_that_is_imported():
    """OpenMMLab's packages are left out, because their original releases have other names."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / 'bootmae').rglob('*.py')]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    known = importlib.metadata.packages_distributions()
    declared = {Requirement(line).name for line in PROJECT['dependencies'] + PROJECT['optional-dependencies']['onnx']}
    imported = {name.split('.')[0] for name in names} & set(known) - {'bootmae'}
    missing = {name for name in imported if not declared & {found.lower().replace('_', '-') for found in known[name]}}
    assert {name for name in missing if not name.startswith('mm')} == {'yapf'}, 'compat.py changes it for mmengine'
    assert {'cv2', 'sklearn', 'torch'} <= imported


def test_lock_is_for_everyone():
    assert '/' not in LOCK, 'the lock names a host or a path'
    assert '--' not in LOCK, 'the lock has an option, such as a hash: a compiled wheel of mmcv has another one'


def test_pythons_agree():
    allowed = SpecifierSet(PROJECT['requires-python'])
    assert {f'3.{minor}' for minor in range(30) if f'3.{minor}' in allowed} == set(setup_env.PYTHONS)


# --- the script ---


def test_an_old_python_can_read_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_settings_of_pip_reach_uv(monkeypatch):
    for name in setup_env.PIP_TO_UV.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('UV_HTTP_TIMEOUT', '7')
    assert setup_env.uv_settings(
        "global.find-links='/a'\nglobal.index-url='http://one/simple'\n"
        "global.extra-index-url='\\nfile:///x\\nfile:///y'\ninstall.index-url='http://two/simple'\n"
        ":env:.find-links='/b /c'\n:env:.default-timeout='9'\nlist.format='json'\n"
    ) == dict(
        UV_FIND_LINKS='/b,/c',
        UV_DEFAULT_INDEX='http://two/simple',
        UV_INDEX='file:///x file:///y',
        UV_INDEX_STRATEGY='unsafe-best-match',
    )


FAKE_UV = """
import json, os, pathlib, sys, sysconfig
if os.environ.get('UV_FAILS'):
    sys.exit(os.environ['UV_FAILS'])
site = pathlib.Path(sysconfig.get_paths()['purelib'])
with open('calls.txt', 'a') as calls:
    print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('UV_')}]), file=calls)
if sys.argv[2] == 'sync' and not (site / 'torch-1.dist-info').exists():
    for name in ('torchvision', 'cv2', 'mmengine', 'mmcv', 'torch'):
        (site / (name + '.py')).touch()
    (site / 'torch-1.dist-info').mkdir()
    (site / 'torch-1.dist-info/RECORD').write_text('torch.py,,\\ntorch-1.dist-info/RECORD,,\\n')
if sys.argv[2] == 'install':
    (site / 'bootmae-1.dist-info').mkdir(exist_ok=True)
    (site / 'bootmae-1.dist-info/METADATA').write_text('Name: bootmae\\nVersion: 1\\n')
    (site / 'bootmae-1.dist-info/RECORD').write_text('')
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A checkout that was set up from a folder of wheels. Its uv only makes empty packages."""
    folder = tmp_path_factory.mktemp('checkout')
    (folder / 'tools').mkdir()
    shutil.copy(SCRIPT, folder / 'tools')
    (folder / 'requirements.lock').write_text('uv==1\n')
    (folder / 'pyproject.toml').touch()
    with zipfile.ZipFile(folder / 'uv-1-py3-none-any.whl', 'w') as wheel:
        wheel.writestr('uv/__main__.py', FAKE_UV)
        wheel.writestr('uv-1.dist-info/METADATA', 'Metadata-Version: 2.1\nName: uv\nVersion: 1\n')
        wheel.writestr('uv-1.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr('uv-1.dist-info/RECORD', 'uv/__main__.py,,\nuv-1.dist-info/RECORD,,\n')
    done = set_up(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def checkout(installed):
    """The same, complete again before each test."""
    assert set_up(installed).returncode == 0
    (installed / 'calls.txt').unlink(missing_ok=True)
    return installed


def command(folder: Path) -> list[str]:
    return [sys.executable, str(folder / 'tools/setup_env.py')]


def set_up(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    unwanted = ('PYTHON', 'PIP_EXTRA_INDEX_URL', 'PIP_INDEX_URL')
    env = {key: value for key, value in os.environ.items() if key not in unwanted and not key.startswith('UV_')}
    env |= dict(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX='1', PIP_FIND_LINKS=str(folder)) | variables
    return subprocess.run(command(folder), env=env, capture_output=True, text=True, timeout=120)


def calls(folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    path = folder / 'calls.txt'
    return [ast.literal_eval(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_complete_environment_is_left_alone(checkout):
    done = set_up(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert calls(checkout) == []


def test_a_new_lock_is_installed(checkout):
    (checkout / 'requirements.lock').write_text(f'{(checkout / "requirements.lock").read_text()}# new\n')
    assert set_up(checkout, MMCV_WITH_OPS='1').returncode == 0
    (sync, settings), (install, _) = calls(checkout)
    lock, python = str(checkout / 'requirements.lock'), str(checkout / '.venv/bin/python')
    assert sync == ['pip', 'sync', '--python', python, '--no-index', '--build-constraints', lock, lock]
    assert settings['UV_FIND_LINKS'] == str(checkout)
    assert install[-4:] == ['--no-deps', '--no-build-isolation', '-e', str(checkout)]


def test_missing_files_are_installed_again(checkout):
    torch = next(checkout.glob('.venv/lib/python3*/site-packages/torch.py'))
    torch.unlink()
    assert set_up(checkout).returncode == 0
    assert torch.exists()


@pytest.mark.slow
def test_a_package_that_does_not_import_is_cured_by_a_new_environment(checkout):
    (checkout / '.venv/.complete').unlink()
    torch = next(checkout.glob('.venv/lib/python3*/site-packages/torch.py'))
    torch.write_text('raise ImportError("no libc10.so")')
    done = set_up(checkout)
    assert done.returncode == 0
    assert 'ImportError: no libc10.so' in done.stdout
    assert '.venv is broken: creating it again' in done.stdout
    assert torch.read_text() == ''


def test_an_environment_of_another_folder_or_python_is_not_used(checkout, tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHON', raising=False)
    monkeypatch.setattr(setup_env, 'PYTHON', checkout / '.venv/bin/python')
    monkeypatch.setattr(setup_env, 'VENV', checkout / '.venv')
    assert setup_env.is_usable()
    monkeypatch.setattr(setup_env, 'VERSION', '3.9')
    assert setup_env.is_usable(), 'without PYTHON= any supported version is fine'
    monkeypatch.setenv('PYTHON', 'python3.9')
    assert not setup_env.is_usable()
    monkeypatch.delenv('PYTHON')
    (tmp_path / 'moved').symlink_to(checkout / '.venv')
    monkeypatch.setattr(setup_env, 'VENV', tmp_path / 'moved')
    assert not setup_env.is_usable()


def test_a_fault_is_one_line_and_the_next_call_continues(checkout):
    (checkout / '.venv/.complete').unlink()
    done = set_up(checkout, UV_FAILS='write error: No space left on device (os error 28)')
    assert done.returncode == 1
    assert done.stderr.startswith('setup: the disk is full. Free 6 GB here')
    assert done.stderr.count('\n') == 1
    assert 'updating it' in set_up(checkout).stdout


@pytest.mark.parametrize(
    ('message', 'fault', 'known'),
    [
        ('OSError: [Errno 122] Disk quota exceeded', 'the disk is full. Free 6 GB here', True),
        (
            'error sending request for url (http://x)\n  dns error',
            'the package registry cannot be reached. Check',
            True,
        ),
        ('ERROR: No matching distribution found for uv==1', 'the package registry cannot be reached. Check', True),
        ('No solution found: torch was not found', 'a package has no file for this Python and machine. Check', True),
        ('a surprise', ' -c .* failed .exit status 3.. Solve the problem shown above', False),
    ],
)
def test_faults_of_the_installers_are_explained(message, fault, known):
    with pytest.raises(setup_env.Failed, match=fault) as failed:
        setup_env.run(sys.executable, '-c', f'print({message!r}); raise SystemExit(3)')
    assert failed.value.known == known


def test_without_network_the_first_step_says_so(checkout, tmp_path):
    (checkout / '.venv/.complete').unlink()
    shutil.rmtree(next(checkout.glob('.venv/lib/python3*/site-packages/uv-1.dist-info')))
    done = set_up(
        checkout,
        PIP_NO_INDEX='',
        PIP_INDEX_URL='http://127.0.0.1:9/simple',
        PIP_RETRIES='0',
        PIP_FIND_LINKS=str(tmp_path),
    )
    assert done.stderr.startswith('setup: the package registry cannot be reached. Check the network')


def test_a_second_call_waits_for_the_first(checkout):
    stamp = checkout / '.venv/.complete'
    content = stamp.read_text()
    stamp.unlink()
    with (checkout / '.venv.lock').open('a') as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = subprocess.Popen(command(checkout), stdout=subprocess.PIPE, text=True)
        assert 'another process is installing here: waiting for it' in second.stdout.readline()
        time.sleep(0.5)  # in which a call that does not wait would start to install
        stamp.write_text(content)
    assert second.communicate(timeout=60) == ('', None)
    assert second.returncode == 0


# --- which Python ---


@pytest.fixture
def python_3_9(monkeypatch):
    monkeypatch.setattr(setup_env, 'VERSION', '3.9')
    monkeypatch.delenv('PYTHON', raising=False)


def test_an_unsupported_python_is_named(python_3_9, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(setup_env.Failed, match=r'Python 3.10, 3.11 or 3.12 is needed, and .* is 3\.9\. Install one'):
        setup_env.use_supported_python()


def test_a_supported_python_beside_it_is_used(python_3_9, tmp_path, monkeypatch):
    for name, code in (('python3.12', 1), ('python3.11', 0)):  # the first one has no venv
        (tmp_path / name).write_text(f'#!/bin/sh\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    used = []
    monkeypatch.setattr(os, 'execv', lambda path, arguments: used.append(path) or sys.exit())
    with pytest.raises(SystemExit):
        setup_env.use_supported_python()
    assert used == [str(tmp_path / 'python3.11')]


def test_python_without_venv_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(setup_env.Failed, match=r'cannot make virtual environments.*apt-get install python3\.\d+-venv'):
        setup_env.use_supported_python()
