"""The lock against pyproject.toml, and tools/bootstrap.py in temporary folders, without any network."""

import ast
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'tools/bootstrap.py'
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
LOCK = (ROOT / 'requirements.lock').read_text()
MACHINES = [('linux', 'x86_64'), ('linux', 'aarch64'), ('darwin', 'arm64')]


def load_bootstrap():
    spec = importlib.util.spec_from_file_location('bootstrap', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load_bootstrap()


# --- the lock ---


def environments() -> list[dict[str, str]]:
    return [
        {
            'python_version': python,
            'python_full_version': f'{python}.5',
            'sys_platform': platform,
            'platform_system': platform.capitalize(),
            'platform_machine': machine,
        }
        for python in ('3.10', '3.11', '3.12')
        for platform, machine in MACHINES
    ]


def locked(environment: dict[str, str]) -> dict[str, str]:
    versions = {}
    for line in LOCK.splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in versions, f'{name} is locked twice for {environment}'
            (pin,) = requirement.specifier
            assert pin.operator == '=='
            versions[name] = pin.version
    return versions


@pytest.mark.parametrize('environment', environments(), ids=lambda e: '-'.join(e.values()))
def test_lock_holds_what_pyproject_asks_for(environment):
    versions = locked(environment)
    for text in PROJECT['dependencies'] + PROJECT['optional-dependencies']['dev']:
        wanted = Requirement(text)
        version = versions[canonicalize_name(wanted.name)]
        assert version in wanted.specifier, f'requirements.lock has {version} for {text}; run: make lock'


def test_lock_is_for_everyone():
    assert '/' not in LOCK, 'the lock names a host or a path'
    assert '--' not in LOCK, 'the lock has an option, such as a hash: a compiled wheel of mmcv has another one'


@pytest.mark.parametrize('name', ['transformers', 'opencv-python'])
def test_lock_leaves_out(name):
    # transformers: see compat.py; opencv-python: see pyproject.toml
    assert all(name not in locked(environment) for environment in environments())


def test_cuda_packages_are_for_linux_only():
    for environment in environments():
        has_cuda = any(name.startswith('nvidia-') for name in locked(environment))
        assert has_cuda == (environment['sys_platform'] == 'linux')


def test_lock_pins_the_tools_that_install_it():
    assert [tool.split('==')[0] for tool in bootstrap.locked_tools(ROOT)] == ['pip', 'setuptools', 'wheel']


def test_pythons_agree():
    allowed = SpecifierSet(PROJECT['requires-python'])
    assert {(3, minor) for minor in range(30) if f'3.{minor}' in allowed} == set(bootstrap.PYTHONS)


# --- the script itself ---


def test_an_old_python_can_read_the_script():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_the_script_needs_only_the_standard_library():
    nodes = [node for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes for alias in node.names if isinstance(node, ast.Import)}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split('.')[0] for name in names} <= sys.stdlib_module_names


def test_ci_script_is_sound():
    script = ROOT / '.ci/run'
    assert os.access(script, os.X_OK)
    subprocess.run(['bash', '-n', script], check=True)


def test_the_container_is_built_from_what_is_here():
    lines = (ROOT / 'Dockerfile').read_text().splitlines()
    base = re.match(r'FROM python:(\d+)\.(\d+)-slim', next(line for line in lines if line.startswith('FROM')))
    assert tuple(map(int, base.groups())) in bootstrap.PYTHONS
    copied = [name for line in lines if line.startswith('COPY') for name in line.split()[2:-1]]
    assert copied == ['requirements.lock', 'pyproject.toml', 'LICENSE', 'tools/bootstrap.py',
                      'bootmae/__init__.py', '.'], 'what tools/bootstrap.py needs comes first'
    assert all((ROOT / name).exists() for name in copied)
    assert 'USER bootmae' in lines[:lines.index('COPY --chown=bootmae . .')]


def test_the_container_gets_all_files_of_the_commit():
    """A file that is left out would make the commit of its results one with changes."""
    ignored = [line for line in (ROOT / '.dockerignore').read_text().splitlines() if line and line[0] != '#']
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('not a git repository')
    for name in listed.stdout.split('\0')[:-1]:
        for pattern in ignored:
            anywhere = pattern.startswith('**/')
            parts = name.split('/') if anywhere else name.split('/')[:1]
            assert not any(fnmatch(part, pattern.removeprefix('**/')) for part in parts), f'{pattern} leaves out {name}'


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_make_alone_lists_the_targets():
    done = subprocess.run(['make', '-s'], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith('  make ')}
    assert listed == {'help', 'setup', 'doctor', 'demo', 'test', 'test-fast', 'parity', 'bench', 'lint', 'format',
                      'lock', 'clean'}


# --- which Python ---


def fake_python(folder: Path, version: str, can_make_venv: bool = True) -> str:
    """A command that answers as bootstrap.py asks it, and nothing else."""
    path = folder / 'python'
    ensurepip = 'exit 0' if can_make_venv else 'exit 1'
    answer = f"printf '%s\\n' '{version}' '{path}' '/usr'"
    path.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) {ensurepip};; *) {answer};; esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize('version', ['3 9 18', '3 13 0'])
def test_unsuitable_python_by_name(tmp_path, monkeypatch, version):
    monkeypatch.setenv('PYTHON', fake_python(tmp_path, version))
    with pytest.raises(bootstrap.Trouble, match=f'is Python {version.replace(" ", ".")}') as trouble:
        bootstrap.choose_python()
    assert '3.10, 3.11 or 3.12' in trouble.value.remedy


def test_missing_python_by_name(monkeypatch):
    monkeypatch.setenv('PYTHON', '/no/such/python')
    with pytest.raises(bootstrap.Trouble, match='PYTHON=/no/such/python does not run'):
        bootstrap.choose_python()


def test_no_suitable_python(monkeypatch):
    monkeypatch.delenv('PYTHON', raising=False)
    monkeypatch.setattr(bootstrap, 'probe', lambda name: ((3, 9, 18), name, '/usr'))
    with pytest.raises(bootstrap.Trouble, match='Python 3.10, 3.11 or 3.12 is needed') as trouble:
        bootstrap.choose_python()
    assert 'make PYTHON=' in trouble.value.remedy


def test_a_suitable_python_beside_an_old_one_is_found(monkeypatch):
    monkeypatch.delenv('PYTHON', raising=False)
    monkeypatch.setattr(bootstrap, 'call', lambda command: '')
    versions = {'python3.11': (3, 11, 2)}
    monkeypatch.setattr(bootstrap, 'probe', lambda name: (versions.get(name, (3, 9, 18)), name, '/usr'))
    assert bootstrap.choose_python()[1] == 'python3.11'


def test_python_without_venv(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHON', fake_python(tmp_path, '3 11 2', can_make_venv=False))
    with pytest.raises(bootstrap.Trouble, match='cannot make virtual environments') as trouble:
        bootstrap.choose_python()
    assert 'apt-get install python3.11-venv' in trouble.value.remedy


# --- the state of .venv ---


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A checkout with a .venv that is complete, but for pip and all packages."""
    monkeypatch.delenv('PYTHON', raising=False)
    (tmp_path / 'requirements.lock').write_text('pip==1\n')
    (tmp_path / 'pyproject.toml').write_text('')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / '.venv'], check=True)
    install = bootstrap.Install(tmp_path)
    install.write_stamp(install.own_python())
    assert install.is_complete()
    return install


def test_complete_is_left_alone(install, monkeypatch):
    monkeypatch.setattr(install, 'install', lambda resumed: pytest.fail('installed again'))
    install.prepare()


def test_no_stamp_is_not_complete(install):
    install.stamp.unlink()
    assert not install.is_complete()


def test_half_a_stamp_is_not_complete(install):
    install.stamp.write_text(install.stamp.read_text()[:20])
    assert not install.is_complete()


@pytest.mark.parametrize('name', ['requirements.lock', 'pyproject.toml'])
def test_changed_inputs_are_not_complete(install, name):
    (install.root / name).write_text('# changed')
    assert not install.is_complete()


def test_missing_lock_is_named(install):
    (install.root / 'requirements.lock').unlink()
    with pytest.raises(bootstrap.Trouble, match='requirements.lock is missing'):
        install.is_complete()


def test_other_bootstrap_version_is_not_complete(install, monkeypatch):
    monkeypatch.setattr(bootstrap, 'VERSION', 'other')
    assert not install.is_complete()


def test_python_that_is_gone_is_not_complete(install):
    for link in install.python.parent.glob('python*'):
        link.unlink()
    assert not install.is_complete()
    assert install.why_unusable() == 'its Python does not run'


def test_python_that_is_not_confined_is_not_usable(install):
    (install.venv / 'pyvenv.cfg').unlink()  # it would install into the Python below
    assert not install.is_complete()
    assert install.why_unusable() == 'its Python does not run'


def test_venv_without_pip_is_not_usable(install):
    assert install.why_unusable() == 'its pip does not run'


def test_venv_of_an_unsupported_python_is_not_usable(install, monkeypatch):
    monkeypatch.setattr(bootstrap, 'PYTHONS', ((3, 99),))
    assert install.why_unusable().startswith('it has Python 3.')


def test_venv_of_another_folder_is_not_usable(install, monkeypatch):
    install.root = install.root / 'moved'
    install.root.mkdir()
    for name in ('requirements.lock', 'pyproject.toml'):
        shutil.copy(install.root.parent / name, install.root)
    assert not install.is_complete()
    assert install.why_unusable() == 'it was made in another folder'


def test_another_python_by_name_is_not_complete(install, tmp_path_factory, monkeypatch):
    other = '3 10 1' if sys.version_info[:2] != (3, 10) else '3 11 1'
    monkeypatch.setenv('PYTHON', fake_python(tmp_path_factory.mktemp('bin'), other))
    assert not install.is_complete()
    assert 'is another version' in install.why_unusable()


def test_leftovers_of_a_killed_pip_are_dropped(install):
    (packages,) = install.venv.glob('lib/python3.*/site-packages')
    for name in ('whole-1.dist-info', 'half-1.dist-info', '~orch'):
        (packages / name).mkdir()
        (packages / name / 'METADATA').touch()
    (packages / 'whole-1.dist-info/RECORD').touch()
    (install.venv / 'tmp').mkdir()
    install.drop_leftovers()
    assert sorted(path.name for path in packages.glob('*') if '-1.' in path.name or '~' in path.name) == [
        'whole-1.dist-info'
    ]
    assert not (install.venv / 'tmp').exists()


# --- faults on the way ---


def test_full_disk_is_seen_before(install, monkeypatch):
    monkeypatch.setattr(bootstrap, 'DISK_GB', 12)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=3e9))
    with pytest.raises(bootstrap.Trouble, match=r'3\.0 GB are free in .*needs 12\.0 GB'):
        install.check_disk()


def test_package_that_does_not_import_is_cured_once(install, monkeypatch):
    done = []
    monkeypatch.setattr(install, 'install', lambda resumed: done.append(('install', resumed)))

    def check():
        done.append('check')
        if done.count('check') == 1:
            raise bootstrap.BrokenPackage('an installed package does not import (no libc10.so)', '')

    monkeypatch.setattr(install, 'check', check)
    monkeypatch.setattr(install, 'own_python', lambda: (3, 11, 7))
    install.fill(resumed=True)
    assert done == [('install', True), 'check', ('install', False), 'check']


def test_package_that_does_not_import_anew_is_reported(install, monkeypatch):
    monkeypatch.setattr(bootstrap, 'CHECK', 'import nothing_of_this_name')
    install.stamp.unlink()
    monkeypatch.setattr(install, 'install', lambda resumed: None)
    with pytest.raises(bootstrap.BrokenPackage, match="No module named 'nothing_of_this_name'"):
        install.fill(resumed=False)
    assert not install.is_complete()


@pytest.mark.parametrize(
    'line, fault',
    [
        ('ERROR: Could not install: [Errno 28] No space left on device', 'the disk is full'),
        ("NameResolutionError('Temporary failure in name resolution')", 'the package registry cannot be reached'),
        ('WARNING: Retrying after ReadTimeoutError', 'the package registry cannot be reached'),
        ('ERROR: No matching distribution found for torch==2.11.0', 'the package registry has no fitting file'),
        ('ERROR: No matching distribution found for pip==26.3', 'the package registry cannot be reached'),
        ('ERROR: something else', 'pip failed (exit status 2)'),
    ],
)
def test_faults_of_pip_are_explained(line, fault):
    trouble = bootstrap.explain('pip', 2, ['before', line, 'after'])
    assert trouble.fault.startswith(fault)
    assert trouble.remedy.endswith('.')
    assert line in trouble.details


def test_a_killed_pip_is_explained():
    assert 'was killed, perhaps for lack of memory' in bootstrap.explain('pip', -9, []).fault


def test_output_of_a_failed_command_is_kept(install):
    with pytest.raises(bootstrap.Trouble) as trouble:
        install.run([sys.executable, '-c', 'print("one"); raise SystemExit("two")'], 'pip')
    assert trouble.value.fault == 'pip failed (exit status 1)'
    assert 'one' in trouble.value.details
    assert 'two' in install.log.read_text()


def test_second_run_waits_for_the_first(install, capsys):
    done = []

    def second():
        with install.only_one():
            done.append('second')

    with (install.root / '.venv.lock').open('a') as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert done == []
    thread.join(10)
    assert done == ['second']
    assert 'another run is installing here: waiting for it' in capsys.readouterr().out


def test_settings_that_would_mislead_pip_are_left_out(install, monkeypatch):
    monkeypatch.setenv('PIP_TARGET', '/elsewhere')
    monkeypatch.setenv('PIP_FIND_LINKS', '/wheels')
    code = 'import os; print(os.environ.get("PIP_TARGET"), os.environ.get("PIP_FIND_LINKS"), os.environ["TMPDIR"])'
    install.run([sys.executable, '-c', code], 'pip')
    assert install.log_lines(0)[-1] == f'None /wheels {install.venv}/tmp'


def test_without_network_the_fault_is_one_line_and_the_next_run_goes_on(tmp_path):
    (tmp_path / 'tools').mkdir()
    for name in ('tools/bootstrap.py', 'requirements.lock', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path / name)
    unwanted = ('PYTHON', 'PIP_FIND_LINKS', 'PIP_EXTRA_INDEX_URL', 'PIP_NO_INDEX')
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    env.update(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='0', PIP_CONFIG_FILE=os.devnull)
    command = [sys.executable, tmp_path / 'tools/bootstrap.py']
    for expected in ('1/4 making .venv', 'going on with it'):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 1
        assert expected in done.stdout
        assert 'Traceback' not in done.stdout + done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith('setup: the package registry cannot be reached. Check the network')
        assert 'pip==' in (tmp_path / '.venv/install.log').read_text()
    assert not (tmp_path / '.venv/.complete').exists()
