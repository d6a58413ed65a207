"""The doctor names each staged fault and its remedy, and runs where packages are missing, broken, crash or hang."""

import errno
import importlib.machinery
import importlib.util
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from bootmae.commands import doctor, doctor_child
from bootmae.commands.doctor import FAULT, NOTE, OK, Context, Finding, run_check
from bootmae.commands.doctor_versions import applies, in_range, read_lock
from bootmae.models import BootMAE

REPOSITORY = Path(__file__).resolve().parents[2]
Usage = namedtuple('Usage', 'total used free')


@pytest.fixture
def context() -> Context:
    """An installation as the lock wants it."""
    return Context(installed=dict(read_lock(REPOSITORY)[0]), gpu=False)


def levels(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.name) for finding in findings]


# --- staged faults: versions ---


@pytest.mark.parametrize(
    'change, level, name, value, remedy',
    [
        (dict(torch='2.10.0+cu130'), FAULT, 'torch', '2.10.0+cu130, supported: >=2.11,<2.16', 'torch==2.11.0'),
        (dict(torch='2.15.0+cu132'), NOTE, 'packages', 'torch 2.15.0+cu132 (lock: 2.11.0)', 'make setup'),
        (dict(numpy='2.3.0'), FAULT, 'numpy', '2.3.0, supported: >=2,<2.3', 'numpy==2.2.6'),
        (dict(scipy='1.19.0'), FAULT, 'scipy', '1.19.0, supported: >=1.15,<1.19', 'scipy==1.1'),
        (dict(setuptools='82.0.1'), FAULT, 'setuptools', '82.0.1, supported: >=77,<82', 'setuptools==81.0.0'),
        (dict(addict=None, timm=None), FAULT, 'packages', 'not installed: addict, timm', 'make setup'),
        (
            dict(timm='1.0.3'),
            NOTE,
            'packages',
            'other versions than in requirements.lock: timm 1.0.3 (lock: 1.0.31)',
            'make setup',
        ),
        (dict(scipy='1.16.0'), NOTE, 'packages', 'scipy 1.16.0', 'make setup'),
        (dict(pip='23.2'), NOTE, 'packages', 'pip 23.2 (lock: ', 'make setup'),
    ],
)
def test_versions(context, change, level, name, value, remedy):
    for package, version in change.items():
        context.installed[package] = version
    context.installed = {package: version for package, version in context.installed.items() if version}
    (finding,) = run_check(doctor.check_packages, context)
    assert (finding.level, finding.name) == (level, name)
    assert value in finding.value
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    'change',
    [
        dict(torch='2.11.0+cpu'),
        dict(numpy='2.2.6'),
        dict(transformers='5.0.0'),
        dict(pytest=None, triton=None, nox=None),
    ],
)
def test_versions_that_are_fine(context, change):
    context.installed.update(change)
    context.installed = {package: version for package, version in context.installed.items() if version}
    assert levels(run_check(doctor.check_packages, context)) == [(OK, 'packages')]


def test_the_original_releases_are_a_note(context):
    for name, (original, *_) in doctor.ORIGINALS.items():
        del context.installed[name]
        context.installed[original] = '1.0'
    (finding,) = run_check(doctor.check_packages, context)
    assert (finding.level, finding.name) == (NOTE, 'packages')
    assert 'instead of the maintained builds: mmcv 1.0, mmengine 1.0, mmpretrain 1.0' in finding.value
    del context.installed['mmcv']
    assert [finding.level for finding in run_check(doctor.check_packages, context)] == [NOTE, FAULT]


@pytest.mark.parametrize(
    'change, level, name, value, remedy',
    [
        (dict(transformers='5.23.0'), NOTE, 'transformers', 'bootmae/compat.py avoids this', 'transformers<5'),
        (dict(mmcv='2.2.0'), FAULT, 'onedl-mmcv', 'mmcv 2.2.0 is installed too', 'uninstall -y mmcv && '),
        ({'mmcv-full': '1.7.2'}, FAULT, 'onedl-mmcv', 'mmcv-full 1.7.2', 'onedl-mmcv==2.3.6'),
        (dict(mmdet='3.3.0'), FAULT, 'onedl-mmdetection', 'mmdet 3.3.0', 'uninstall -y mmdet'),
        (
            {'opencv-python': '4.12.0.88'},
            FAULT,
            'opencv',
            'opencv-python and opencv-python-headless own the same files',
            'uninstall -y opencv-python opencv-python-headless',
        ),
    ],
)
def test_combinations(context, change, level, name, value, remedy):
    assert levels(run_check(doctor.check_combinations, context)) == [(OK, 'combinations')]
    context.installed.update(change)
    (finding,) = run_check(doctor.check_combinations, context)
    assert (finding.level, finding.name) == (level, name)
    assert value in finding.value
    assert remedy in finding.remedy


def test_transformers_4_and_transformers_without_pycocotools_are_fine(context):
    context.installed['transformers'] = '4.57.1'
    assert levels(run_check(doctor.check_combinations, context)) == [(OK, 'combinations')]
    context.installed['transformers'] = '5.0.0'
    del context.installed['pycocotools']
    assert levels(run_check(doctor.check_combinations, context)) == [(OK, 'combinations')]


@pytest.mark.parametrize('version, level', [('3.9.19', FAULT), ('3.13.0', FAULT), ('3.10.0', None), ('3.12.9', None)])
def test_python(context, monkeypatch, version, level):
    monkeypatch.setattr(platform, 'python_version', lambda: version)
    (finding,) = run_check(doctor.check_python, context)
    assert (finding.level == FAULT) == (level == FAULT)
    if level:
        assert f'{version}, supported: >=3.10,<3.13' in finding.value


def test_another_environment_is_noted(context, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    (finding,) = run_check(doctor.check_python, context)
    assert (finding.level, finding.remedy) == (NOTE, 'source .venv/bin/activate')


def test_an_environment_that_is_not_activated(context, monkeypatch, tmp_path):
    """One fault, and not one for each package that the system's Python lacks."""
    (tmp_path / '.venv/bin').mkdir(parents=True)
    (tmp_path / '.venv/bin/python').touch()
    shutil.copy(REPOSITORY / 'pyproject.toml', tmp_path)
    found = doctor.examine(Context(root=tmp_path, work_dir=tmp_path, installed=dict(numpy='2.4.6')))
    assert (found[0].level, found[0].remedy) == (FAULT, 'source .venv/bin/activate')
    assert [finding.name for finding in found[1:]] == ['work directory', 'disk', '/dev/shm', 'open files']
    assert doctor.unactivated(Context(root=tmp_path, installed=dict(torch='2.11.0'))) is False
    assert doctor.unactivated(Context(root=tmp_path / 'no_venv', installed=dict(numpy='2.4.6'))) is False


def test_versions_compare_as_packaging_does():
    from packaging.specifiers import SpecifierSet

    versions = ('1.9', '1.10', '2', '2.0.0', '2.2.6', '2.3', '2.11.0', '81.0.0', '82.0')
    for version in versions:
        for limits in ('>=2,<2.3', '==2.11.0', '==2.2.*', '<82', '!=2.0.0', '>1.9,<=2.2.6', ''):
            assert in_range(version, limits) == (version in SpecifierSet(limits)), (version, limits)


def test_the_lock_is_read_as_packaging_does(monkeypatch):
    from packaging.markers import Marker

    for line in (REPOSITORY / 'requirements.lock').read_text().splitlines():
        if ';' in line:
            marker = line.split(';')[1].strip()
            for version in ('3.10.4', '3.11.7', '3.12.1'):
                for system, machine in (('linux', 'aarch64'), ('darwin', 'arm64'), ('win32', 'AMD64')):
                    monkeypatch.setattr(platform, 'python_version', lambda version=version: version)
                    monkeypatch.setattr(platform, 'machine', lambda machine=machine: machine)
                    monkeypatch.setattr(sys, 'platform', system)
                    expected = Marker(marker).evaluate(
                        dict(python_full_version=version, sys_platform=system, platform_machine=machine)
                    )
                    assert applies(marker) == expected, marker


# --- staged faults: machine ---


def test_a_full_disk(context, monkeypatch):
    for free, level in ((1e9, FAULT), (5e9, NOTE), (500e9, OK)):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: Usage(1e12, 0, free))
        (finding,) = run_check(doctor.check_disk, context)
        assert finding.level == level
        assert finding.value.startswith(f'{free / 1e9:.1f} GB free')
        assert ('--work-dir' in finding.remedy) == (level != OK)


def test_a_work_directory_that_is_read_only(context, monkeypatch, tmp_path):
    context.work_dir = tmp_path / 'not/yet/there'
    assert run_check(doctor.check_work_dir, context)[0].level == OK
    assert list(tmp_path.iterdir()) == [], 'nothing is left behind'

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', refuse)
    (finding,) = run_check(doctor.check_work_dir, context)
    assert finding.level == FAULT
    assert finding.value == f'{tmp_path} is not writable: Read-only file system'
    assert '--work-dir' in finding.remedy


def test_a_file_in_place_of_the_work_directory(context, tmp_path):
    context.work_dir = tmp_path / 'file'
    context.work_dir.touch()
    assert run_check(doctor.check_work_dir, context)[0].level == FAULT


def test_little_shared_memory_and_few_open_files(context, monkeypatch):
    monkeypatch.setattr(os.path, 'isdir', lambda path: True)
    for total, level in ((64 * 2**20, FAULT), (1e9, NOTE), (16e9, OK)):
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, total=total: Usage(total, 0, total))
        assert run_check(doctor.check_shared_memory, context)[0].level == level
    for soft, level in ((256, FAULT), (1024, NOTE), (65536, OK), (resource.RLIM_INFINITY, OK)):
        monkeypatch.setattr(resource, 'getrlimit', lambda which, soft=soft: (soft, soft))
        assert run_check(doctor.check_file_descriptors, context)[0].level == level


# --- staged faults: what imports ---


@pytest.fixture
def fake_mmcv(tmp_path, monkeypatch):
    """A folder in which the doctor looks for mmcv."""
    spec = importlib.machinery.ModuleSpec('mmcv', None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
    return tmp_path


def test_mmcv_without_compiled_ops(context, fake_mmcv):
    (finding,) = run_check(doctor_child.check_compiled_ops, context)
    assert (finding.level, finding.name) == (NOTE, 'mmcv ops')
    assert "not compiled: torchvision's nms and roi_align are used" in finding.value
    assert 'MMCV_WITH_OPS=1' in finding.remedy


def test_compiled_ops_of_another_torch(context, fake_mmcv):
    (fake_mmcv / f'_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}').write_bytes(b'not a library')
    (finding,) = run_check(doctor_child.check_compiled_ops, context)
    assert finding.level == FAULT
    assert f'compiled for another torch than {torch.__version__}: ImportError' in finding.value
    assert 'MMCV_WITH_OPS=1' in finding.remedy


def test_mmcv_is_missing(context, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert run_check(doctor_child.check_compiled_ops, context)[0].value == 'mmcv is not installed'


def test_a_broken_import(context, monkeypatch):
    import_module = importlib.import_module

    def broken(name, *args):
        if name == 'scipy':
            raise AttributeError('numpy has no attribute\nmore')
        return import_module(name, *args)

    monkeypatch.setattr(importlib, 'import_module', broken)
    (finding,) = run_check(doctor_child.check_imports, context)
    assert (finding.level, finding.name) == (FAULT, 'import scipy')
    assert finding.value == 'AttributeError: numpy has no attribute'


def test_a_smoke_run(context):
    first, second = (run_check(doctor_child.check_smoke, context)[0] for _ in range(2))
    assert first.level == OK
    assert first.value == second.value
    assert 1 < float(first.value.removeprefix('loss ')) < 20


@pytest.mark.parametrize(
    'method, fake, value',
    [
        ('update_momentum', lambda self, decay: None, 'momentum encoder moved: False'),
        (
            'loss',
            lambda self, images: dict(
                loss_pixel=math.nan * sum(p.sum() for p in self.backbone.parameters()), loss_feature=0
            ),
            'loss nan',
        ),
        ('loss', lambda self, images: 1 / 0, 'ZeroDivisionError'),
    ],
)
def test_a_smoke_run_that_fails(context, monkeypatch, method, fake, value):
    monkeypatch.setattr(BootMAE, method, fake)
    (finding,) = run_check(doctor_child.check_smoke, context)
    assert finding.level == FAULT
    assert value in finding.value
    assert 'make setup' in finding.remedy


@pytest.mark.parametrize(
    'driver, cuda, level, value',
    [
        ('', '13.0', OK, 'none in use'),
        ('580.1', None, FAULT, 'was built without CUDA'),
        ('470.2', '13.0', FAULT, 'torch (CUDA 13.0) does not work with driver 470.2'),
    ],
)
def test_a_gpu_that_torch_cannot_use(monkeypatch, driver, cuda, level, value):
    monkeypatch.setattr(doctor_child, 'driver_version', lambda: driver)
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    (finding,) = run_check(doctor_child.check_gpu, Context())
    assert finding.level == level
    assert value in finding.value


# --- the child process ---


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """``fake_package(name, code)``: a package that the child process finds before the installed one."""
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))

    def make(name: str, code: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text(code)

    return make


def test_no_torch(fake_package):
    fake_package('torch', 'print("no line end", end=""); raise ModuleNotFoundError("No module named \'torch\'")')
    fake_package('bootmae', 'import torch')
    found = {finding.name: finding for finding in doctor.checks_of_child(gpu=False)}
    assert found['torch'].level == found['import bootmae.registry'].level == FAULT
    assert found['torch'].value == "ModuleNotFoundError: No module named 'torch'"
    assert found['torch'].remedy == doctor.REPAIR
    assert not {'gpu', 'nvjpeg', 'compiled ops', 'smoke'} & set(found), 'they would fail for the same reason'


@pytest.mark.parametrize(
    'code, limit_s, value',
    [
        (
            'import os; os.kill(os.getpid(), 11)',
            60,
            'crashed or hung, ended with code -11: Segmentation fault, '
            'File "{folder}/torch/__init__.py", line 1 in <module>',
        ),
        ('import os; os._exit(0)', 60, 'crashed or hung, ended with code 0: '),
        ('import time; time.sleep(60)', 1, 'crashed or hung, no result after 1 s: '),
        (
            'import os; os.write(2, b"undefined symbol\\n"); os._exit(7)',
            60,
            'crashed or hung, ended with code 7: undefined symbol',
        ),
    ],
)
def test_a_package_that_crashes_or_hangs(fake_package, tmp_path, code, limit_s, value):
    fake_package('torch', code)
    (finding,) = doctor.checks_of_child(gpu=False, limit_s=limit_s)
    assert (finding.level, finding.name, finding.value) == (FAULT, 'torch', value.format(folder=tmp_path))


def test_a_check_that_fails_is_a_fault():
    def check_of_something(context):
        raise np.exceptions.AxisError(3)  # has no text: str() of it fails

    (finding,) = run_check(check_of_something, Context())
    assert (finding.level, finding.name, finding.remedy) == (FAULT, 'of something', doctor.REPAIR)
    assert finding.value.startswith('AxisError: ')


def test_only_the_standard_library_is_imported_at_the_top():
    code = (
        'import sys, types; sys.modules["alone"] = package = types.ModuleType("alone")\n'
        f'package.__path__ = [{str(REPOSITORY / "bootmae/commands")!r}]\n'
        'import alone.doctor, alone.doctor_child'
    )
    done = subprocess.run([sys.executable, '-I', '-S', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_user_without_a_home_and_a_machine_without_temporary_files(fake_package, monkeypatch):
    monkeypatch.delenv('HOME')
    monkeypatch.delenv('LOGNAME', raising=False)
    fake_package('torch', 'import os; raise OSError(os.environ["HOME"], os.environ["LOGNAME"])')
    assert doctor.checks_of_child(gpu=False)[0].value == 'OSError: [Errno /] user'
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: os.stat('/no/folder'))
    (finding,) = doctor.checks_of_child(gpu=False)
    assert (finding.name, finding.remedy) == ('temporary files', 'free some space, or export TMPDIR=/another/folder')
