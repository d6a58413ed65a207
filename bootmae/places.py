"""Where configs, suites and tools are, and where runs are written.

``bootmae/.mim`` is where OpenMMLab's tools look for the configs and tools of an installed package. In a checkout it
holds links to the folders at the top, so both have one layout.
"""

import re
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


def as_commands(text: str) -> str:
    """Write ``tools/NAME.py`` in a text as ``bootmae NAME``."""
    return re.sub(r'\btools/(\w+)\.(?:py|sh)\b', r'bootmae \1', text)


def as_typed(text: str) -> str:
    """Write ``tools/NAME.py`` as ``bootmae NAME`` if the package is installed, where no folder ``tools`` is at hand."""
    return as_commands(text) if IS_INSTALLED else text
