"""Where a result comes from: commit, versions, device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ('torch', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'timm', 'scikit-learn')


def git_commit() -> str:
    """Commit of the suite, ``+`` appended if tracked files differ from it; empty outside a repository."""
    def git(*args: str) -> str:
        return subprocess.run(('git', '-C', REPOSITORY, *args), capture_output=True, text=True, check=True).stdout
    try:
        changed = git('status', '--porcelain', '--untracked-files=no').strip()
        return git('rev-parse', '--short=12', 'HEAD').strip() + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return ''


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide a result; packages not installed are left out."""
    found = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The GPU's name, or the number of CPU threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'
