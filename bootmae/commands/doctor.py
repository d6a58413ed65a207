"""Diagnose the installation and the machine within seconds; every fault comes with a remedy.

The doctor must run even if packages are missing or broken. It imports only the standard library, every check is
independent, and checks that import packages run in a child process (doctor_child.py), which may crash or hang.
``tools/doctor.py`` loads this file without the package around it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .doctor_versions import fits, in_range, installed_packages, numbers, read_lock, read_ranges

ROOT = (Path(__file__).resolve().parents[1] / '.mim' / 'tools').resolve().parent  # as in places.py
IS_INSTALLED = ROOT.name == '.mim'
OK, NOTE, FAULT = 'ok', 'note', 'FAULT'
PIP = f'{sys.executable} -m pip' if IS_INSTALLED else '.venv/bin/python -m pip'
REPAIR = (
    f'{PIP} install --no-deps -r {ROOT}/requirements.lock' if IS_INSTALLED else 'rm -f .venv/.complete && make setup'
)
GB = 1e9
LIMIT_S = 90  # a child process that takes longer counts as hanging
DISK_FAULT, DISK_NOTE = 2 * GB, 12 * GB  # about one ViT-B checkpoint; the old and the new ViT-L checkpoint
SHM_FAULT, SHM_NOTE = 0.5 * GB, 8 * GB
FILES_FAULT, FILES_NOTE = 1024, 4096
# not in pyproject.toml, but must stay in the release series of the lock: the stack calls functions that others lack
WATCHED = ('scipy',)
OPTIONAL = re.compile(  # never a fault: CUDA, developer tools and their dependencies
    'nvidia-|cuda-|triton|pytest|ruff|codespell|pip$|uv$|wheel$|iniconfig|pluggy|mypy|librt|ast-serialize|pathspec|nox$|'
    'argcomplete|attrs|colorlog|dependency-groups|humanize|virtualenv|distlib|python-discovery|import-linter|grimp'
)
ORIGINALS = {
    'onedl-mmcv': ('mmcv', 'mmcv-full', 'mmcv-lite'),
    'onedl-mmengine': ('mmengine', 'mmengine-lite'),
    'onedl-mmpretrain': ('mmpretrain',),
    'onedl-mmdetection': ('mmdet',),
    'onedl-mmsegmentation': ('mmsegmentation',),
}
OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless')
COMPILE = (
    f'MMCV_WITH_OPS=1 {PIP} install --no-deps --no-build-isolation --no-cache-dir --force-reinstall onedl-mmcv==2.3.6'
)


@dataclass
class Finding:
    """Result of a check.

    Args:
        level: ``OK``, ``NOTE`` or ``FAULT``.
        name: subject of the check.
        value: what was found, and why it matters.
        remedy: a command or an instruction.
        seconds: duration of the check.
    """

    level: str
    name: str
    value: str
    remedy: str = ''
    seconds: float = 0.0

    def __str__(self) -> str:
        took = f'  [{self.seconds:.1f} s]' if self.seconds >= 0.1 else ''
        remedy = f'\n{"":8}-> {self.remedy}' if self.remedy else ''
        return f'{self.level:<7} {self.name:<16} {self.value}{took}{remedy}'


@dataclass
class Context:
    """Input of the checks.

    Args:
        root: folder with requirements.lock and pyproject.toml.
        work_dir: folder for runs.
        installed: version of each installed package.
        gpu: whether the child process may use a GPU.
    """

    root: Path = ROOT
    work_dir: Path = (Path.cwd() if IS_INSTALLED else ROOT) / 'work_dirs'
    installed: dict[str, str] = field(default_factory=dict)
    gpu: bool = True


Check = Callable[[Context], 'Finding | list[Finding]']


def run_check(check: Check, context: Context) -> list[Finding]:
    """Run a check and return its findings. An exception in the check is a fault."""
    start = time.perf_counter()
    name = check.__name__.replace('check_', '').replace('_', ' ')
    try:
        found = check(context)
    except Exception as error:  # a broken installation may raise anything
        found = Finding(FAULT, name, first_line(error), REPAIR)
    found = found if isinstance(found, list) else [found]
    if found:
        found[-1].seconds = time.perf_counter() - start
    return found


def first_line(error: BaseException) -> str:
    """Format the type and the first line of an error."""
    try:
        text = str(error)
    except Exception:  # some errors cannot be formatted
        text = ''
    return f'{type(error).__name__}: {text}'.splitlines()[0][:200]


def check_python(context: Context) -> Finding:
    version = platform.python_version()
    limits = re.search('requires-python = "(.*)"', (context.root / 'pyproject.toml').read_text())[1]
    if not in_range(version, limits):
        return Finding(
            FAULT,
            'Python',
            f'{version}, supported: {limits}',
            'install it with another Python'
            if IS_INSTALLED
            else 'PYTHON=/path/to/python3.12 make setup  (then source .venv/bin/activate)',
        )
    if unactivated(context):
        return Finding(
            FAULT,
            'Python',
            f'{version} in {sys.prefix} has no torch; this is not the Python of .venv',
            'source .venv/bin/activate',
        )
    if not IS_INSTALLED and Path(sys.prefix).resolve() != (context.root / '.venv').resolve():
        return Finding(NOTE, 'Python', f'{version} in {sys.prefix}, not in .venv', 'source .venv/bin/activate')
    return Finding(OK, 'Python', f'{version}, {platform.system()} {platform.machine()}')


def unactivated(context: Context) -> bool:
    """Whether this Python lacks the suite's packages while .venv exists."""
    venv = context.root / '.venv'
    return (
        Path(sys.prefix).resolve() != venv.resolve()
        and (venv / 'bin/python').exists()
        and 'torch' not in context.installed
    )


def check_packages(context: Context) -> list[Finding]:
    """Compare the installed versions with the lock.

    A version outside the range of pyproject.toml is a fault. Another version within the range is a note, and so are the
    original OpenMMLab releases in place of the maintained builds.
    """
    (wanted, known), ranges = read_lock(context.root), read_ranges(context.root)
    originals = {
        name: original
        for name, candidates in ORIGINALS.items()
        for original in candidates
        if original in context.installed and name not in context.installed
    }
    missing = [
        name for name in wanted if name not in context.installed and name not in originals and not OPTIONAL.match(name)
    ]
    findings, others = [], []
    if originals:
        listed = ', '.join(f'{original} {context.installed[original]}' for original in originals.values())
        findings.append(Finding(NOTE, 'packages', f'original releases instead of the maintained builds: {listed}'))
    for name, version in wanted.items():
        have = context.installed.get(name)
        if have is None or fits(have, '==', version):
            continue
        limits = ranges.get(name, '')
        if name in WATCHED:
            series = sorted(numbers(v)[:2] for v in known[name])
            limits = '>={}.{}'.format(*series[0]) + f',<{series[-1][0]}.{series[-1][1] + 1}'
        if in_range(have, limits) or OPTIONAL.match(name):
            others.append(f'{name} {have} (lock: {version})')
        else:
            findings.append(
                Finding(
                    FAULT,
                    name,
                    f'{have}, supported: {limits}; tested: {version}',
                    f'{PIP} install --no-deps {name}=={version}',
                )
            )
    if missing:
        listed = ', '.join(missing[:6]) + (f', ... ({len(missing)})' if len(missing) > 6 else '')
        findings.append(Finding(FAULT, 'packages', f'not installed: {listed}', REPAIR))
    if others:
        listed = ', '.join(others[:6]) + (f', ... ({len(others)})' if len(others) > 6 else '')
        findings.append(Finding(NOTE, 'packages', f'other versions than in requirements.lock: {listed}', REPAIR))
    return findings or [Finding(OK, 'packages', f'{len(wanted)} as in requirements.lock')]


def check_combinations(context: Context) -> list[Finding]:
    """Find packages that conflict."""
    have, findings = context.installed, []
    for name, originals in ORIGINALS.items():
        if both := [original for original in originals if original in have and name in have]:
            findings.append(
                Finding(
                    FAULT,
                    name,
                    f'{both[0]} {have[both[0]]} is installed too and owns the same files',
                    f'{PIP} uninstall -y {" ".join(both)} && {PIP} install --force-reinstall --no-deps '
                    f'{name}=={have[name]}',
                )
            )
    if len(twins := [name for name in OPENCV if name in have]) > 1:
        findings.append(
            Finding(
                FAULT,
                'opencv',
                f'{" and ".join(twins)} own the same files: the last one installed wins',
                f'{PIP} uninstall -y {" ".join(twins)} && {PIP} install --no-deps '
                f'opencv-python-headless=={read_lock(context.root)[0]["opencv-python-headless"]}',
            )
        )
    if 'pycocotools' in have and numbers(have.get('transformers', '0')) >= (5,):
        findings.append(
            Finding(
                NOTE,
                'transformers',
                f'{have["transformers"]} with pycocotools breaks the import of mmpretrain; '
                'bootmae/compat.py avoids this by disabling the multimodal models',
                f'import bootmae.registry before mmpretrain, or run: {PIP} install "transformers<5"',
            )
        )
    return findings or [Finding(OK, 'combinations', 'no known conflicts')]


# --- machine ---


def existing(folder: Path) -> Path:
    """Return the folder itself or its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_work_dir(context: Context) -> Finding:
    folder = existing(context.work_dir)
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b'x' * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(
            FAULT,
            'work directory',
            f'{folder} is not writable: {error.strerror or error}',
            f'ls -ld {folder}; make it writable, or pass --work-dir ELSEWHERE',
        )
    return Finding(OK, 'work directory', f'{context.work_dir} is writable')


def check_disk(context: Context) -> Finding:
    folder = existing(context.work_dir)
    free = shutil.disk_usage(folder).free
    level = FAULT if free < DISK_FAULT else NOTE if free < DISK_NOTE else OK
    why = '' if level == OK else f': a ViT-B checkpoint needs {DISK_FAULT / GB:.0f} GB, a ViT-L checkpoint more'
    return Finding(
        level,
        'disk',
        f'{free / GB:.1f} GB free in {folder}{why}',
        '' if level == OK else 'free some space, or pass --work-dir ELSEWHERE; see: du -sh work_dirs/*',
    )


def check_shared_memory(context: Context) -> Finding:
    if not os.path.isdir('/dev/shm'):
        return Finding(OK, '/dev/shm', 'none on this system')
    total = shutil.disk_usage('/dev/shm').total
    level = FAULT if total < SHM_FAULT else NOTE if total < SHM_NOTE else OK
    why = (
        '' if level == OK else ': data loader workers pass batches through it and die with "bus error" when it is full'
    )
    return Finding(
        level,
        '/dev/shm',
        f'{total / GB:.2f} GB{why}',
        '' if level == OK else 'docker run --shm-size=16g (or --ipc=host), or use fewer num_workers',
    )


def check_file_descriptors(context: Context) -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = FAULT if 0 <= soft < FILES_FAULT else NOTE if 0 <= soft < FILES_NOTE else OK
    why = '' if level == OK else ': each batch of a data loader worker needs some'
    return Finding(level, 'open files', f'at most {soft}{why}', '' if level == OK else 'ulimit -n 65536')


MACHINE: tuple[Check, ...] = (check_work_dir, check_disk, check_shared_memory, check_file_descriptors)
CHECKS: tuple[Check, ...] = (check_python, check_packages, check_combinations, *MACHINE)


# --- the child process (doctor_child.py), for checks that import packages ---


MARK = '@doctor '  # prefix of the child's lines that are meant for this process
CHILD = """
import importlib, sys, types
sys.path[:] = [path for path in sys.path if path]
sys.modules['alone'] = package = types.ModuleType('alone')
package.__path__ = [sys.argv[1]]
importlib.import_module('alone.doctor_child').child(bool(int(sys.argv[2])))
"""


def read_child(lines: Iterator[str]) -> tuple[list[Finding], str]:
    """Parse the child's output: its findings, and the name of the check in which it ended ('' if all are complete)."""
    findings, current = [], 'the start'
    for line in lines:
        if line.startswith(MARK):
            content = json.loads(line[len(MARK) :])
            if isinstance(content, str):
                current = content.replace('check_', '').replace('_', ' ')
            else:
                findings += [Finding(**finding) for finding in content]
                current = ''
    return findings, current


def last_words(errors: str) -> str:
    """Return why a process ended: Python's report of a crash and the innermost line of code, or the last line."""
    lines = errors.strip().splitlines()
    crash = next((index for index, line in enumerate(lines) if line.startswith('Fatal Python error: ')), None)
    if crash is None:
        return lines[-1][:200] if lines else ''
    where = next((line.strip() for line in lines[crash:] if line.startswith('  File ')), '')
    return f'{lines[crash].removeprefix("Fatal Python error: ")}, {where}'.rstrip(', ')


def checks_of_child(gpu: bool = True, limit_s: float = LIMIT_S) -> list[Finding]:
    """Run the child process and return its findings. A crash or a hang is a fault too."""
    start = time.perf_counter()
    command = [sys.executable, '-X', 'faulthandler', '-c', CHILD, str(Path(__file__).resolve().parent), str(int(gpu))]
    env = {'LOGNAME': 'user', 'HOME': '/'} | os.environ  # as in places.py
    try:
        tempfile.gettempdir()
    except OSError as error:
        return [Finding(FAULT, 'temporary files', str(error), 'free some space, or export TMPDIR=/another/folder')]
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors='replace', env=env)
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        findings, current = read_child(process.stdout)
        code = process.wait()
        timer.cancel()
        errors.seek(0)
        last = last_words(errors.read())
    if code or current:
        seconds = time.perf_counter() - start
        how = f'no result after {limit_s:.0f} s' if seconds >= limit_s else f'ended with code {code}'
        findings.append(Finding(FAULT, current or 'child process', f'crashed or hung, {how}: {last}', REPAIR))
    return findings


def examine(context: Context) -> list[Finding]:
    """Return all findings about this installation and machine."""
    context.installed = context.installed or installed_packages()
    if unactivated(context):  # the packages of this Python do not matter
        return [finding for check in (check_python, *MACHINE) for finding in run_check(check, context)]
    found: list[list[Finding]] = [[]]
    thread = threading.Thread(target=lambda: found.append(checks_of_child(context.gpu)))
    thread.start()  # importing takes seconds, during which the other checks run
    findings = [finding for check in CHECKS for finding in run_check(check, context)]
    thread.join()
    return findings + found[-1]


def main(work_dir: str | None = None) -> int:
    """Print all findings and return the exit code: 1 if there is a fault, else 0."""
    start = time.perf_counter()
    findings = examine(Context(work_dir=Path(work_dir).expanduser().resolve()) if work_dir else Context())
    for finding in findings:
        print(finding)
    levels = [finding.level for finding in findings]
    faults, notes = levels.count(FAULT), levels.count(NOTE)  # without text.py, since there may be no package
    print(
        f'\n{faults} fault{"" if faults == 1 else "s"}, {notes} note{"" if notes == 1 else "s"}, '
        f'{levels.count(OK)} fine, {time.perf_counter() - start:.1f} s'
    )
    return 1 if FAULT in levels else 0
