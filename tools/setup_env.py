#!/usr/bin/env python3
"""Create `.venv` with the packages of requirements.lock and this project; do nothing if it is complete.

`make` runs this script before its other targets. It needs only the standard library. Python 3.6 can parse it, so an old
Python ends with a clear message or continues in a newer Python. uv installs the packages. It does not read pip's
settings (index, proxy, wheel folders), so they are translated.
"""

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

try:
    import fcntl
except ImportError:
    sys.exit('setup: Windows is not supported. Use Linux, macOS, or the Windows Subsystem for Linux.')

ROOT = Path(__file__).resolve().parent.parent
VENV, LOCK = ROOT / '.venv', ROOT / 'requirements.lock'
PYTHON, STAMP = VENV / 'bin' / 'python', VENV / '.complete'
PYTHONS = ('3.12', '3.11', '3.10')
VERSION = '{}.{}'.format(*sys.version_info)
CHECK = 'import torch, torchvision, cv2, mmengine, mmcv, importlib.metadata as m; m.version("bootmae")'
PIP_TO_UV = {  # options of pip and the corresponding variables of uv
    'index-url': 'UV_DEFAULT_INDEX',
    'extra-index-url': 'UV_INDEX',
    'find-links': 'UV_FIND_LINKS',
    'proxy': 'ALL_PROXY',
    'trusted-host': 'UV_INSECURE_HOST',
    'cert': 'SSL_CERT_FILE',
    'timeout': 'UV_HTTP_TIMEOUT',
    'default-timeout': 'UV_HTTP_TIMEOUT',
    'no-cache-dir': 'UV_NO_CACHE',
    'no-index': '--no-index',
}
# settings that would install packages elsewhere, request other versions, or compile mmcv
UNWANTED = (
    'PIP_TARGET',
    'PIP_PREFIX',
    'PIP_ROOT',
    'PIP_USER',
    'PIP_CONSTRAINT',
    'UV_CONSTRAINT',
    'UV_SYSTEM_PYTHON',
    'PYTHONPATH',
    'PYTHONHOME',
    'MMCV_WITH_OPS',
)
# pattern in the output of pip or uv, fault, remedy; the first match counts
FAULTS = (
    (
        r'no space left on device|os error 28\b|quota exceeded|os error 122\b',
        'the disk is full',
        'Free 6 GB here, and 6 GB for the cache of uv if it is on another disk (UV_CACHE_DIR moves it)',
    ),
    (
        r'error sending request|failed to fetch|dns error|name resolution|not known|timed out|timeouterror|unreachable|'
        r'connection (refused|reset|broken)|connect error|newconnection|proxyerror|sslerror|certificate|found for uv==',
        'the package registry cannot be reached',
        'Check the network (HTTPS_PROXY, PIP_INDEX_URL, PIP_FIND_LINKS)',
    ),
    (
        r'no solution found|no matching distribution|not found in the (package registry|provided)|no wheels with',
        'a package has no file for this Python and machine',
        'Check PIP_FIND_LINKS and PIP_INDEX_URL; supported are Linux (x86_64, aarch64) and macOS (arm64)',
    ),
)


class Failed(Exception):
    """A fault with its remedy; ``known`` means that starting over would not help."""

    def __init__(self, fault: str, remedy: str, known: bool = True):
        super().__init__('{}. {}, then run the same command again.'.format(fault, remedy))
        self.known = known


def say(text: str) -> None:
    print('setup: ' + text, flush=True)


def use_supported_python() -> None:
    """Continue in another Python if this one is not supported, and check that it has venv."""
    named = os.environ.get('PYTHON')
    if VERSION not in PYTHONS:
        for name in () if named else PYTHONS:
            path = shutil.which('python' + name)
            if path and not subprocess.call([path, '-c', 'import ensurepip'], stderr=subprocess.DEVNULL):
                os.execv(path, [path, __file__])
        raise Failed(
            'Python 3.10, 3.11 or 3.12 is needed, and {} is {}'.format(named or sys.executable, VERSION),
            'Install one of them, or name it (make setup PYTHON=/path/to/python3.12)',
        )
    if importlib.util.find_spec('ensurepip') is None:
        raise Failed(
            sys.executable + ' cannot make virtual environments',
            'Install its venv package (Debian, Ubuntu: sudo apt-get install python{}-venv)'.format(VERSION),
        )


def is_usable() -> bool:
    """Whether the existing `.venv` is usable: created in this folder with a supported or the named Python."""
    activate = VENV / 'bin' / 'activate'
    versions = [VERSION] if os.environ.get('PYTHON') else PYTHONS
    return (
        PYTHON.exists()
        and activate.exists()
        and str(VENV) in activate.read_text()
        and any((VENV / 'lib' / ('python' + version)).is_dir() for version in versions)
    )


def damaged() -> List[Path]:
    """Return the metadata folders of packages with missing files, as after a killed installation."""

    def is_whole(folder: Path) -> bool:
        try:
            lines = (folder / 'RECORD').read_text(encoding='utf-8').splitlines()
        except OSError:
            return False
        names = (line.rsplit(',', 2)[0].strip('"') for line in lines)
        return all(name.endswith('.pyc') or os.path.exists(os.path.join(str(folder.parent), name)) for name in names)

    return [folder for folder in VENV.glob('lib/python3*/site-packages/*.dist-info') if not is_whole(folder)]


def stamp() -> str:
    inputs = b''.join(path.read_bytes() for path in (LOCK, ROOT / 'pyproject.toml', Path(__file__)))
    return hashlib.sha256(inputs).hexdigest()


def is_complete() -> bool:
    return STAMP.exists() and STAMP.read_text() == stamp() and is_usable() and not damaged()


def uv_settings(pip_config: str) -> Dict[str, str]:
    """Translate the output of `pip config list` to variables for uv; existing variables of uv take precedence."""
    # pip compares the versions of all indexes; uv would use the first index that has the package
    settings = {'UV_INDEX_STRATEGY': 'unsafe-best-match'}
    for section in ('global.', 'install.', ':env:.'):  # later ones take precedence, as in pip
        for key, _, value in (line.partition('=') for line in pip_config.splitlines()):
            name = PIP_TO_UV.get(key[len(section) :])
            if key.startswith(section) and name:
                settings[name] = (',' if name == 'UV_FIND_LINKS' else ' ').join(ast.literal_eval(value).split())
    return {name: value for name, value in settings.items() if value and name not in os.environ}


def run(*command: str, **variables: str) -> None:
    """Run a command and show its output.

    Raises:
        Failed: with the cause, if the command fails.
    """
    env = {key: value for key, value in os.environ.items() if key not in UNWANTED}
    # the child inherits .venv.lock and so holds it if this script is killed
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env, **variables),
        cwd=str(ROOT),
        close_fds=False,
        universal_newlines=True,
    )
    output = ''
    for line in process.stdout:
        output += line
        if not re.match(r' [-+~] ', line):  # uv's list of all packages
            print('    ' + line, end='', flush=True)
    if process.wait():
        for words, fault, remedy in FAULTS:
            if re.search(words, output.lower()):
                raise Failed(fault, remedy)
        raise Failed(
            '{} failed (exit status {})'.format(' '.join(command[:4]), process.returncode),
            'Solve the problem shown above',
            known=False,
        )


def install(anew: bool) -> None:
    if anew:
        say('creating .venv with Python {}.{}.{}'.format(*sys.version_info))
        run(sys.executable, '-m', 'venv', '--clear', str(VENV))
    else:
        say('.venv is incomplete or out of date: updating it')
        if STAMP.exists():
            STAMP.unlink()
        for folder in damaged():
            shutil.rmtree(str(folder))  # otherwise uv would consider the package installed
    module = [str(PYTHON), '-I', '-m']
    run(*module, 'pip', 'install', '-q', '--no-deps', re.search(r'^uv==\S+', LOCK.read_text(), re.MULTILINE).group())
    settings = uv_settings(subprocess.check_output(module + ['pip', 'config', 'list'], universal_newlines=True))
    options = ['--python', str(PYTHON)]
    if settings.pop('--no-index', '').lower() in ('1', 'true', 'yes', 'on'):
        options.append('--no-index')
    say('installing requirements.lock (on Linux 2.6 GB of downloads, unless uv has them in its cache)')
    run(*module, 'uv', 'pip', 'sync', *options, '--build-constraints', str(LOCK), str(LOCK), **settings)
    run(*module, 'uv', 'pip', 'install', *options, '--no-deps', '--no-build-isolation', '-e', str(ROOT), **settings)
    run(str(PYTHON), '-I', '-c', CHECK)
    STAMP.write_text(stamp())
    say('ready')


def main() -> None:
    if is_complete():
        return
    use_supported_python()
    with (ROOT / '.venv.lock').open('a') as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another process is installing here: waiting for it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete():
            return
        anew = not is_usable()
        try:
            install(anew)
        except Failed as failed:
            if anew or failed.known:
                raise
            say('.venv is broken: creating it again')
            install(anew=True)


if __name__ == '__main__':
    try:
        main()
    except (Failed, OSError) as error:
        sys.exit('setup: {}'.format(error))
    except KeyboardInterrupt:
        sys.exit('setup: interrupted. The same command continues from here.')
