#!/usr/bin/env python3
"""Makes `.venv` with everything in requirements.lock and this project; does nothing where that is already done.

`make` runs it before every other target. It needs nothing but Python's standard library, and runs on Python 3.6 as
well, so that an old Python is told so in one line, or a newer one is found beside it.

How it stays repairable: `.venv/.complete` is written last. Without it the next run goes on with what is there, or
starts again where that does not work. `.venv.lock` keeps two runs apart, and outlives a killed run as long as its pip.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Version = Tuple[int, int, int]
Found = Tuple[Version, str, str]  # version, path and prefix of a Python

ROOT = Path(__file__).resolve().parent.parent
VERSION = '1'  # raise it when a finished .venv of an earlier bootstrap has to be installed again
PYTHONS = ((3, 12), (3, 11), (3, 10))
# Linux, with CUDA: .venv takes 5.7 GB, and each download of 2.6 GB lies in pip's cache and beside it until the end
DISK_GB = 11.5 if sys.platform == 'linux' else 4
# version, path and prefix of a Python; a virtual environment, which may be the one to clear, names the Python below it
PROBE = """
import os, sys
print(*sys.version_info[:3])
print(sys.executable if sys.prefix == sys.base_prefix else os.path.realpath(sys.executable))
print(sys.prefix)
"""
CHECK = """
import importlib.util, torch, torchvision, cv2, mmengine, mmcv
assert importlib.util.find_spec("bootmae"), "bootmae is not installed"
"""
# settings of a user that would send packages elsewhere, or ask for other versions
UNWANTED = ('PYTHONHOME', 'PYTHONPATH', 'VIRTUAL_ENV', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT', 'PIP_CONSTRAINT')
# words in pip's output -> what is wrong, what to do; the first that fits
FAULTS = (
    (
        ('No space left on device', 'Disk quota exceeded'),
        'the disk is full',
        'Free {} GB here, then run the same command again: it goes on from here.'.format(DISK_GB),
    ),
    (
        (
            'NewConnectionError',
            'Failed to establish a new connection',
            'ConnectTimeoutError',
            'ReadTimeoutError',
            'Connection refused',
            'Connection reset',
            'Max retries exceeded',
            'name resolution',
            'Name or service not known',
            'Network is unreachable',
            'ProxyError',
            'SSLError',
            'CERTIFICATE_VERIFY_FAILED',
            'IncompleteRead',
            'RemoteDisconnected',
            'ProtocolError',
            'No matching distribution found for pip==',  # pip fits everywhere
        ),
        'the package registry cannot be reached',
        'Check the network (and HTTPS_PROXY or PIP_INDEX_URL, if you need them), then run the same command again.',
    ),
    (
        ('No matching distribution found',),
        'the package registry has no fitting file of a package for this Python and machine',
        'Supported are Python 3.10 to 3.12 on Linux (x86_64, aarch64) and macOS (arm64).',
    ),
    (
        ('MemoryError', 'Cannot allocate memory'),
        'there is too little memory',
        'Close other programs, then run the same command again.',
    ),
)


class Trouble(Exception):
    """A fault that the user can cure: what is wrong, what to do, and lines that show it."""

    def __init__(self, fault: str, remedy: str, details: str = ''):
        super().__init__(fault)
        self.fault, self.remedy, self.details = fault, remedy, details


class BrokenPackage(Trouble):
    """Something is installed that cannot be imported."""


class Install:
    """One run in one checkout: its folder, its clock and its log."""

    def __init__(self, root: Path):
        self.root = root
        self.venv = root / '.venv'
        self.python = self.venv / 'bin' / 'python'
        self.stamp = self.venv / '.complete'
        self.log = self.venv / 'install.log'
        self.lock_file = None
        self.start = time.time()

    def say(self, text: str) -> None:
        seconds = int(time.time() - self.start)
        print('[{}:{:02d}] {}'.format(seconds // 60, seconds % 60, text), flush=True)

    # --- is it done? ---

    def inputs(self) -> str:
        """A hash of all that decides what is installed."""
        digest = hashlib.sha256(VERSION.encode())
        for name in ('requirements.lock', 'pyproject.toml'):
            try:
                digest.update((self.root / name).read_bytes())
            except FileNotFoundError:
                raise Trouble('{} is missing'.format(self.root / name), 'Run: git checkout {}'.format(name)) from None
        return digest.hexdigest()

    def expected_stamp(self, version: Version) -> Dict[str, str]:
        # an editable install names its folder, so a checkout that was moved or copied is not complete
        return {'inputs': self.inputs(), 'python': '{}.{}'.format(*version), 'root': str(self.root)}

    def read_stamp(self) -> Dict[str, str]:
        try:
            return json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}

    def write_stamp(self, version: Version) -> None:
        temporary = self.stamp.with_suffix('.tmp')
        temporary.write_text(json.dumps(self.expected_stamp(version)))
        os.replace(str(temporary), str(self.stamp))

    def own_python(self) -> Optional[Version]:
        """Version of .venv's Python, or None where it does not run or is not confined to .venv."""
        found = probe(str(self.python))
        if found is None or os.path.realpath(found[2]) != os.path.realpath(str(self.venv)):
            return None
        return found[0]

    def is_complete(self) -> bool:
        stamp = self.read_stamp()
        if not stamp:
            return False
        version = self.own_python()
        return version is not None and stamp == self.expected_stamp(version) and not self.other_wanted(version)

    def other_wanted(self, version: Version) -> bool:
        """Whether PYTHON= asks for another Python than .venv has."""
        wanted = os.environ.get('PYTHON')
        return bool(wanted) and version[:2] != named_python(wanted)[0][:2]

    def why_unusable(self) -> str:
        """Why the .venv that is there has to be made from scratch; '' if it can be gone on with."""
        version = self.own_python()
        if version is None:
            return 'its Python does not run'
        if version[:2] not in PYTHONS:
            return 'it has Python {}.{}.{}'.format(*version)
        if self.other_wanted(version):
            return 'PYTHON={} is another version than its {}.{}.{}'.format(os.environ['PYTHON'], *version)
        if self.read_stamp().get('root', str(self.root)) != str(self.root):
            return 'it was made in another folder'
        if call([str(self.python), '-I', '-m', 'pip', '--version']) is None:
            return 'its pip does not run'
        return ''

    # --- doing it ---

    def prepare(self) -> None:
        """Brings .venv to the state of the lock."""
        if self.is_complete():
            return
        with self.only_one():
            if self.is_complete():  # another run was here first
                return
            resumed = self.venv.is_dir() and any(self.venv.iterdir())
            if resumed:
                reason = self.why_unusable()
                if reason:
                    self.say('.venv cannot be used ({}): making it again'.format(reason))
                    clear(self.venv)
                    resumed = False
                else:
                    self.say('.venv is not complete or not up to date: going on with it')
            self.fill(resumed)

    def fill(self, resumed: bool) -> None:
        try:
            self.install(resumed)
            self.check()
        except BrokenPackage as trouble:
            if not resumed:
                raise
            self.say('{}: making .venv again'.format(trouble.fault))
            clear(self.venv)
            self.install(False)
            self.check()
        shutil.rmtree(str(self.venv / 'tmp'), ignore_errors=True)
        self.write_stamp(self.own_python())
        self.say('ready')

    def install(self, resumed: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.stamp.unlink()
        self.drop_leftovers()
        self.check_disk()
        if not resumed:
            self.make_venv()
        lock = str(self.root / 'requirements.lock')
        pinned = locked_tools(self.root)
        self.say('2/4 installing {}'.format(', '.join(pinned)))
        self.pip('install', *pinned)
        self.say('3/4 installing the locked packages (on Linux 2.6 GB to download, unless pip has them in its cache)')
        # the lock is complete, so pip need not look for more; it also keeps the build tools of source packages
        self.pip('install', '--no-deps', '--build-constraint', lock, '-r', lock)
        self.pip('install', '--no-deps', '--no-build-isolation', '-e', str(self.root))

    def make_venv(self) -> None:
        version, python, _ = choose_python()
        self.say('1/4 making .venv with Python {}.{}.{} ({})'.format(*version, python))
        self.run([python, '-m', 'venv', str(self.venv)], 'python -m venv')

    def check_disk(self) -> None:
        """Raises if what is still to come has no room."""
        needed = DISK_GB - size_gb(self.venv)
        free = shutil.disk_usage(str(self.root)).free / 1e9
        if free < needed:
            raise Trouble(
                '{:.1f} GB are free in {}, the installation needs {:.1f} GB'.format(free, self.root, needed),
                'Free some, or move the checkout to a larger disk.',
            )

    def drop_leftovers(self) -> None:
        """Removes what a killed pip left, so that it installs those packages anew instead of taking them as done."""
        shutil.rmtree(str(self.venv / 'tmp'), ignore_errors=True)
        for packages in self.venv.glob('lib/python3.*/site-packages'):
            for half in list(packages.glob('~*')) + [p for p in packages.glob('*.dist-info') if not is_whole(p)]:
                shutil.rmtree(str(half), ignore_errors=True)

    def check(self) -> None:
        self.say('4/4 checking')
        try:
            self.run([str(self.python), '-I', '-c', CHECK], 'the check')
        except Trouble as trouble:
            error = trouble.details.strip().splitlines()[-1:] or ['no message']
            raise BrokenPackage(
                'an installed package does not import ({})'.format(error[0].strip()),
                'Cure that, or run: make clean, then the same command again.',
                trouble.details,
            ) from None

    def pip(self, *arguments: str) -> None:
        options = ['--disable-pip-version-check', '--no-input', '--progress-bar', 'off']
        self.run([str(self.python), '-I', '-m', 'pip', arguments[0]] + options + list(arguments[1:]), 'pip')

    def run(self, command: List[str], name: str) -> None:
        """Runs a command with its output in the log; Trouble with the end of it if it fails."""
        temporary = self.venv / 'tmp'  # /tmp is often too small for torch
        temporary.mkdir(parents=True, exist_ok=True)
        env = {key: value for key, value in os.environ.items() if key not in UNWANTED}
        env.update(TMPDIR=str(temporary), PIP_USER='0')
        with self.log.open('ab') as log:
            begin = log.tell()
            log.write('\n$ {}\n'.format(' '.join(command)).encode())
            log.flush()
            keep = (self.lock_file.fileno(),) if self.lock_file else ()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=str(self.root), pass_fds=keep
            )
            try:
                code = self.wait(process)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if code != 0:
            raise explain(name, code, self.log_lines(begin))

    def wait(self, process: subprocess.Popen) -> int:
        """Waits for it, with a sign of life every 20 seconds."""
        while True:
            try:
                return process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.say('    ' + self.progress())

    def progress(self) -> str:
        last = (self.log_lines(0)[-1:] or ['...'])[0].strip()
        if last.startswith('Installing collected packages'):
            return 'unpacking: {} packages are in place'.format(len(list(self.venv.glob('lib/*/site-packages/*-info'))))
        return last[:100]

    def log_lines(self, begin: int) -> List[str]:
        with self.log.open('rb') as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(begin, end - 20000))
            return [line for line in log.read().decode('utf-8', 'replace').splitlines() if line.strip()]

    @contextlib.contextmanager
    def only_one(self) -> Iterator[None]:
        """Waits until no other run is installing here."""
        with (self.root / '.venv.lock').open('a') as self.lock_file:
            try:
                fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say('another run is installing here: waiting for it')
                fcntl.flock(self.lock_file, fcntl.LOCK_EX)
            except OSError:
                self.say('this file system has no locks: do not start a second run before this one ends')
            yield
            self.lock_file = None


def call(command: List[str]) -> Optional[str]:
    """Standard output of a short command, or None if it fails."""
    env = {key: value for key, value in os.environ.items() if key not in UNWANTED}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode() if done.returncode == 0 else None


def probe(python: str) -> Optional[Found]:
    """Version, own path and prefix of a Python, or None where there is none that runs."""
    lines = (call([python, '-I', '-c', PROBE]) or '').splitlines()
    if len(lines) != 3:
        return None
    return tuple(int(number) for number in lines[0].split()), lines[1], lines[2]


def named_python(name: str) -> Found:
    """The Python that PYTHON= names; Trouble if it is not a suitable one."""
    found = probe(name)
    if found is None:
        raise Trouble('PYTHON={} does not run'.format(name), 'Give the path of a Python 3.10, 3.11 or 3.12.')
    if found[0][:2] not in PYTHONS:
        raise Trouble(
            'PYTHON={} is Python {}.{}.{}'.format(name, *found[0]), 'Give the path of a Python 3.10, 3.11 or 3.12.'
        )
    return found


def choose_python() -> Found:
    """The first suitable Python: PYTHON=, else the running one, else what the usual names find."""
    wanted = os.environ.get('PYTHON')
    if wanted:
        suitable = [named_python(wanted)]
    else:
        names = [sys.executable] + ['python{}.{}'.format(*version) for version in PYTHONS]
        suitable = [found for found in map(probe, names) if found and found[0][:2] in PYTHONS]
    if not suitable:
        raise Trouble(
            'Python 3.10, 3.11 or 3.12 is needed, but python3 is {}.{}.{} and no other is found'.format(
                *sys.version_info[:3]
            ),
            'Install one of the three, or name it: make PYTHON=/path/to/python3.12 ...',
        )
    for found in suitable:
        if call([found[1], '-I', '-c', 'import ensurepip, venv']) is not None:
            return found
    raise Trouble(
        '{} cannot make virtual environments'.format(suitable[0][1]),
        'On Debian or Ubuntu: sudo apt-get install python{}.{}-venv'.format(*suitable[0][0]),
    )


def locked_tools(root: Path) -> List[str]:
    """The lines of the lock that pip itself needs before the rest, such as 'pip==26.3'."""
    names = ('pip', 'setuptools', 'wheel')
    lines = (root / 'requirements.lock').read_text().split('\n')
    return [line.split(';')[0].strip() for line in lines if line.split('==')[0] in names]


def is_whole(dist_info: Path) -> bool:
    """pip writes RECORD after all files of a package."""
    return (dist_info / 'RECORD').is_file() and (dist_info / 'METADATA').is_file()


def clear(folder: Path) -> None:
    """Empties a folder; it stays, because it may be a link or a mount."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(str(entry))
        else:
            entry.unlink()


def size_gb(folder: Path) -> float:
    total = 0
    for where, _, files in os.walk(str(folder)):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total / 1e9


def explain(name: str, code: int, lines: List[str]) -> Trouble:
    """The Trouble behind the failed command, from the end of its output."""
    text = '\n'.join(lines)
    details = '\n'.join(lines[-8:])
    for words, fault, remedy in FAULTS:
        if any(word in text for word in words):
            return Trouble(fault, remedy, details)
    if code in (-signal.SIGKILL, 137):
        return Trouble('{} was killed, perhaps for lack of memory'.format(name), 'Run the same command again.', details)
    return Trouble(
        '{} failed (exit status {})'.format(name, code),
        'Run the same command again; if it stays, run: make clean, and then the same command.',
        details,
    )


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    install = Install(ROOT)
    try:
        if fcntl is None:
            raise Trouble('Windows is not supported', 'Use Linux or macOS, or the Windows Subsystem for Linux.')
        install.prepare()
    except Trouble as trouble:
        if trouble.details:
            print('\nThe end of {}:\n{}\n'.format(install.log, trouble.details), file=sys.stderr)
        print('setup: {}. {}'.format(trouble.fault, trouble.remedy), file=sys.stderr)
        return 1
    except OSError as error:
        print('setup: {}. Cure this, then run the same command again.'.format(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('setup: interrupted. The same command goes on from here.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
