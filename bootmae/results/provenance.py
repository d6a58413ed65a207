"""Provenance of a result: commit, versions, device."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from ..text import count_of

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ('torch', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'timm', 'scikit-learn')
# original packages that may be installed instead of the maintained builds
ORIGINALS = {
    'onedl-mmengine': ('mmengine',),
    'onedl-mmcv': ('mmcv-lite', 'mmcv'),
    'onedl-mmpretrain': ('mmpretrain',),
    'onedl-mmdetection': ('mmdet',),
    'onedl-mmsegmentation': ('mmsegmentation',),
}


def from_anywhere(path: str | Path) -> Path:
    """Return a path of the user, or the same path below the top of the repository if there is only that.

    The tools can so be called from any folder, with the paths of the documentation.
    """
    path, inside = Path(path), REPOSITORY / path
    return inside if inside.is_file() and not path.exists() else path


def git_commit() -> str:
    """Current commit, with ``+`` if tracked files differ from it; empty outside a repository."""

    def git(*args: str) -> str:
        return subprocess.run(('git', '-C', REPOSITORY, *args), capture_output=True, text=True, check=True).stdout

    try:
        changed = git('status', '--porcelain', '--untracked-files=no').strip()
        return git('rev-parse', '--short=12', 'HEAD').strip() + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return ''


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, of the packages that affect results, and of ``more``, if installed."""
    found = {'python': platform.python_version()}
    for package in (*PACKAGES, *more):
        for name in (package, *ORIGINALS.get(package, ())):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
                break
    return found


def device_name() -> str:
    """Name of the GPU, or number of CPU cores."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {count_of(os.cpu_count(), "core")}'


def portable(path: str | Path | None) -> str:
    """A path for result rows: relative to the repository if below it, else the file name."""
    if not path:
        return ''
    path = Path(path).resolve()
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else path.name
