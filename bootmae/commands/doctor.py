"""What is wrong with an installation or a machine, in seconds, each fault with its remedy.

It must run where packages are missing or broken: nothing but the standard library is imported, every check is by
itself, and all that imports packages happens in a child process (doctor_child.py), which may crash or hang.
``tools/doctor.py`` loads this file without the package around it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
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

ROOT = Path(__file__).resolve().parents[2]
OK, NOTE, FAULT = 'ok', 'note', 'FAULT'
REPAIR = 'rm -f .venv/.complete && make setup'
PIP = '.venv/bin/python -m pip'
GB = 1e9
LIMIT_S = 90  # after which the child process counts as hanging
DISK_FAULT, DISK_NOTE = 2 * GB, 12 * GB  # about one checkpoint of ViT-B; the old and the new one of ViT-L
SHM_FAULT, SHM_NOTE = 0.5 * GB, 8 * GB
FILES_FAULT, FILES_NOTE = 1024, 4096
# neither in pyproject.toml, nor may it leave the series that the lock knows: the stack calls what others lack
WATCHED = ('scipy',)
OPTIONAL = re.compile(  # never a fault: CUDA, and tools of developers with what they need
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
    """What a check says.

    Args:
        level: ``OK``, ``NOTE`` or ``FAULT``.
        name: what was looked at.
        value: what was found, and why it matters.
        remedy: a command, or what to do.
        seconds: that it took.
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
    """What checks look at.

    Args:
        root: of the checkout.
        work_dir: where runs go.
        installed: version of each package.
        gpu: whether the child process may use a GPU.
    """

    root: Path = ROOT
    work_dir: Path = ROOT / 'work_dirs'
    installed: dict[str, str] = field(default_factory=dict)
    gpu: bool = True


Check = Callable[[Context], 'Finding | list[Finding]']


def run_check(check: Check, context: Context) -> list[Finding]:
    """A check's findings; if it fails itself, that is a fault."""
    start = time.perf_counter()
    name = check.__name__.replace('check_', '').replace('_', ' ')
    try:
        found = check(context)
    except Exception as error:  # whatever a broken installation raises
        found = Finding(FAULT, name, first_line(error), REPAIR)
    found = found if isinstance(found, list) else [found]
    if found:
        found[-1].seconds = time.perf_counter() - start
    return found


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    try:
        text = str(error)
    except Exception:  # there are such errors
        text = ''
    return f'{type(error).__name__}: {text}'.splitlines()[0][:200]


# --- versions ---


def normal(name: str) -> str:
    """A package's name as the lock writes it."""
    return re.sub('[-_.]+', '-', name).lower()


def installed_packages() -> dict[str, str]:
    """Version of each package that Python would import, by its normal name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(Exception):  # a half-removed package has no metadata
            found.setdefault(normal(distribution.metadata['Name']), distribution.version)
    return found


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: '2.11.0+cu130' -> (2, 11, 0)."""
    return tuple(int(part) for part in re.findall('[0-9]+', re.match('[0-9.]*', version)[0]))


def fits(version: str, comparison: str, other: str) -> bool:
    """Whether ``version comparison other`` holds, such as 2.2.6 < 2.3; '==3.11.*' compares what is before the star."""
    a, b = numbers(version), numbers(other)
    length = len(b) if other.endswith('.*') else max(len(a), len(b))
    a, b = ((x + (0,) * length)[:length] for x in (a, b))
    return {'==': a == b, '!=': a != b, '>=': a >= b, '<=': a <= b, '>': a > b, '<': a < b}[comparison]


def applies(marker: str) -> bool:
    """Whether a line of the lock with this condition is meant for this Python and machine."""
    facts = dict(sys_platform=sys.platform, platform_machine=platform.machine())

    def decide(match: re.Match) -> str:
        name, comparison, value = match.groups()
        if name.startswith('python'):
            return str(fits(platform.python_version(), comparison, value))
        return str((facts[name] == value) == (comparison == '=='))

    decided = re.sub(r"(\w+) *(==|!=|>=|<=|>|<) *'([^']*)'", decide, marker)
    if not re.fullmatch('(True|False|and|or|[() ])*', decided):
        raise ValueError(f'requirements.lock has a condition that is not understood: {marker}')
    return not decided.strip() or bool(eval(decided))


def read_lock(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Versions that requirements.lock wants here, and all versions that it names for any Python and machine."""
    wanted, known = {}, {}
    for line in (root / 'requirements.lock').read_text().splitlines():
        requirement, _, marker = line.partition(';')
        if '==' in requirement:
            name, version = (part.strip() for part in requirement.split('=='))
            known.setdefault(normal(name), []).append(version)
            if applies(marker):
                wanted[normal(name)] = version
    return wanted, known


def read_ranges(root: Path) -> dict[str, str]:
    """Ranges of versions in pyproject.toml, such as '>=2,<2.3'. Read as text: Python 3.10 has no TOML reader."""
    entries = re.findall(r'^\s+"([\w.-]+)([<>=!][^"\s]*)?",', (root / 'pyproject.toml').read_text(), re.MULTILINE)
    return {normal(name): limits for name, limits in entries}


def in_range(version: str, limits: str) -> bool:
    """Whether a version is in a range such as '>=2,<2.3'; '' is any."""
    return all(fits(version, *re.match('([<>=!]+)(.*)', limit).groups()) for limit in limits.split(',') if limit)


def check_python(context: Context) -> Finding:
    version = platform.python_version()
    limits = re.search('requires-python = "(.*)"', (context.root / 'pyproject.toml').read_text())[1]
    if not in_range(version, limits):
        return Finding(
            FAULT,
            'Python',
            f'{version}, supported: {limits}',
            'PYTHON=/path/to/python3.12 make setup  (then source .venv/bin/activate)',
        )
    if unactivated(context):
        return Finding(
            FAULT,
            'Python',
            f'{version} of {sys.prefix}, which has no torch: it is not that of .venv',
            'source .venv/bin/activate',
        )
    if Path(sys.prefix).resolve() != (context.root / '.venv').resolve():
        return Finding(NOTE, 'Python', f'{version} of {sys.prefix}, not of .venv', 'source .venv/bin/activate')
    return Finding(OK, 'Python', f'{version}, {platform.system()} {platform.machine()}')


def unactivated(context: Context) -> bool:
    """Whether this is a Python without the suite's packages, while .venv has them."""
    venv = context.root / '.venv'
    return (
        Path(sys.prefix).resolve() != venv.resolve()
        and (venv / 'bin/python').exists()
        and 'torch' not in context.installed
    )


def check_packages(context: Context) -> list[Finding]:
    """Versions against the lock: a fault outside the range of pyproject.toml, a note inside it.

    The original OpenMMLab releases in place of the maintained builds are a note too.
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
        findings.append(Finding(NOTE, 'packages', f'original releases in place of the maintained builds: {listed}'))
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
    """Packages that do not go together."""
    have, findings = context.installed, []
    for name, originals in ORIGINALS.items():
        if both := [original for original in originals if original in have and name in have]:
            findings.append(
                Finding(
                    FAULT,
                    name,
                    f'{both[0]} {have[both[0]]} is installed too, and owns the same files',
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
                f'{PIP} uninstall -y {" ".join(twins)} && {PIP} install --no-deps -r requirements.lock',
            )
        )
    if 'pycocotools' in have and numbers(have.get('transformers', '0')) >= (5,):
        findings.append(
            Finding(
                NOTE,
                'transformers',
                f'{have["transformers"]} with pycocotools breaks the import of mmpretrain; '
                'bootmae/compat.py cures it by leaving out the multimodal models',
                f'import bootmae.registry before mmpretrain, or: {PIP} install "transformers<5"',
            )
        )
    return findings or [Finding(OK, 'combinations', 'none that is known to be bad')]


# --- machine ---


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
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
            f'{folder} cannot be written to: {error.strerror or error}',
            f'ls -ld {folder}; make it writable, or give runs --work-dir ELSEWHERE',
        )
    return Finding(OK, 'work directory', f'{context.work_dir} can be written to')


def check_disk(context: Context) -> Finding:
    folder = existing(context.work_dir)
    free = shutil.disk_usage(folder).free
    level = FAULT if free < DISK_FAULT else NOTE if free < DISK_NOTE else OK
    why = '' if level == OK else f': checkpoints of ViT-B need {DISK_FAULT / GB:.0f} GB each, of ViT-L more'
    return Finding(
        level,
        'disk',
        f'{free / GB:.1f} GB free in {folder}{why}',
        '' if level == OK else 'free some, or give runs --work-dir ELSEWHERE; see: du -sh work_dirs/*',
    )


def check_shared_memory(context: Context) -> Finding:
    if not os.path.isdir('/dev/shm'):
        return Finding(OK, '/dev/shm', 'none on this system')
    total = shutil.disk_usage('/dev/shm').total
    level = FAULT if total < SHM_FAULT else NOTE if total < SHM_NOTE else OK
    why = '' if level == OK else ': loader workers hand over batches there and die with "bus error" when it is full'
    return Finding(
        level,
        '/dev/shm',
        f'{total / GB:.2f} GB{why}',
        '' if level == OK else 'docker run --shm-size=16g (or --ipc=host), or fewer num_workers',
    )


def check_file_descriptors(context: Context) -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = FAULT if 0 <= soft < FILES_FAULT else NOTE if 0 <= soft < FILES_NOTE else OK
    why = '' if level == OK else ': each batch of a loader worker takes some'
    return Finding(level, 'open files', f'at most {soft}{why}', '' if level == OK else 'ulimit -n 65536')


MACHINE: tuple[Check, ...] = (check_work_dir, check_disk, check_shared_memory, check_file_descriptors)
CHECKS: tuple[Check, ...] = (check_python, check_packages, check_combinations, *MACHINE)


# --- the child process, for all that imports packages: doctor_child.py ---


MARK = '@doctor '  # before each line of the child that is meant for us
CHILD = """
import importlib, sys, types
sys.path[:] = [path for path in sys.path if path]
sys.modules['alone'] = package = types.ModuleType('alone')
package.__path__ = [sys.argv[1]]
importlib.import_module('alone.doctor_child').child(bool(int(sys.argv[2])))
"""


def read_child(lines: Iterator[str]) -> tuple[list[Finding], str]:
    """Findings of a child process's output, and the check that it was in when it ended, '' if it came to the end."""
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


def checks_of_child(gpu: bool = True, limit_s: float = LIMIT_S) -> list[Finding]:
    """What the child process finds; that it crashes or hangs is a fault too."""
    start = time.perf_counter()
    command = [sys.executable, '-c', CHILD, str(Path(__file__).resolve().parent), str(int(gpu))]
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors='replace')
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        findings, current = read_child(process.stdout)
        code = process.wait()
        timer.cancel()
        errors.seek(0)
        last = ([''] + errors.read().strip().splitlines())[-1][:200]
    if code or current:
        seconds = time.perf_counter() - start
        how = f'not done after {limit_s:.0f} s' if seconds >= limit_s else f'ended with code {code}'
        findings.append(Finding(FAULT, current or 'child process', f'crashed or hangs, {how}: {last}', REPAIR))
    return findings


def examine(context: Context) -> list[Finding]:
    """All findings about this installation and machine."""
    context.installed = context.installed or installed_packages()
    if unactivated(context):  # its packages are of no interest
        return [finding for check in (check_python, *MACHINE) for finding in run_check(check, context)]
    found: list[list[Finding]] = [[]]
    thread = threading.Thread(target=lambda: found.append(checks_of_child(context.gpu)))
    thread.start()  # importing takes seconds, in which the other checks are made
    findings = [finding for check in CHECKS for finding in run_check(check, context)]
    thread.join()
    return findings + found[-1]


def main(work_dir: str | None = None) -> int:
    """What ``tools/doctor.py`` does: prints all findings; 1 if one is a fault, else 0."""
    start = time.perf_counter()
    findings = examine(Context(work_dir=Path(work_dir).resolve() if work_dir else ROOT / 'work_dirs'))
    for finding in findings:
        print(finding)
    levels = [finding.level for finding in findings]
    print(
        f'\n{levels.count(FAULT)} faults, {levels.count(NOTE)} notes, {levels.count(OK)} fine, '
        f'{time.perf_counter() - start:.1f} s'
    )
    return 1 if FAULT in levels else 0
