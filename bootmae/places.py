"""Where configs, suites and tools are, and where runs are written.

``bootmae/.mim`` is where OpenMMLab's tools look for the configs and tools of an installed package. In a checkout it
holds links to the folders at the top, so both have one layout.
"""

import getpass
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

# the top of the checkout; .mim if the package is installed
REPOSITORY = (Path(__file__).resolve().parent / '.mim' / 'tools').resolve().parent
IS_INSTALLED = REPOSITORY.name == '.mim'
OURS = 'bootmae::'  # prefix of our configs in `_base_` of other projects


def our_config(name: str) -> Path:
    """Return the file of a name such as ``bootmae::pretrain/bootmae_vitb.py``."""
    return REPOSITORY / 'configs' / name.removeprefix(OURS)


def runs_folder() -> Path:
    """Return the folder of ``work_dirs`` and ``data``: the top of the checkout, else the current folder."""
    return Path.cwd() if IS_INSTALLED else REPOSITORY


def from_anywhere(path: str | Path) -> Path:
    """Return a path of the user, or the same path below the repository if there is only that.

    The tools can so be called from any folder, with the paths of the documentation.
    """
    path, inside = Path(path), REPOSITORY / path
    return inside if inside.is_file() and not path.exists() else path


def portable(path: str | Path | None) -> str:
    """Return a path for result rows: relative to the repository or the folder of the runs, else the file name."""
    if not path:
        return ''
    text = shown(Path(path).resolve())
    return Path(text).name if Path(text).is_absolute() else text


def shown(path: str | Path) -> str:
    """Return a path to print: relative to the repository or the folder of the runs if it is below one of them."""
    path = Path(path)
    above = (folder for folder in (REPOSITORY, runs_folder()) if path.is_relative_to(folder))
    return str(next((path.relative_to(folder) for folder in above), path))


def ensure_home() -> None:
    """Give a user without a name or a writable home, as in containers, what torch, yapf and numba need at import."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ['LOGNAME'] = f'user{os.getuid()}'
    if os.path.expanduser('~') == '~':
        os.environ['HOME'] = '/'  # as Docker does
    if not os.access(os.path.expanduser('~'), os.W_OK):
        with suppress(OSError):
            caches = os.path.join(tempfile.gettempdir(), f'bootmae_{os.getuid()}')
            os.makedirs(caches, 0o700, exist_ok=True)
            if os.lstat(caches).st_uid == os.getuid():  # numba runs what it finds there
                for name in ('NUMBA_CACHE_DIR', 'MPLCONFIGDIR'):
                    os.environ.setdefault(name, caches)


def as_commands(text: str) -> str:
    """Write ``tools/NAME.py`` in a text as ``bootmae NAME``."""
    return re.sub(r'\btools/(\w+)\.(?:py|sh)\b', r'bootmae \1', text)


def as_typed(text: str) -> str:
    """Write ``tools/NAME.py`` as ``bootmae NAME`` if the package is installed, where no folder ``tools`` is at hand."""
    return as_commands(text) if IS_INSTALLED else text
