"""Provenance of a result: commit, versions, device."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata

import torch

from ..places import IS_INSTALLED, REPOSITORY
from ..text import count_of

PACKAGES = ('torch', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'timm', 'scikit-learn')
# original packages that may be installed instead of the maintained builds
ORIGINALS = {
    'onedl-mmengine': ('mmengine',),
    'onedl-mmcv': ('mmcv-lite', 'mmcv'),
    'onedl-mmpretrain': ('mmpretrain',),
    'onedl-mmdetection': ('mmdet',),
    'onedl-mmsegmentation': ('mmsegmentation',),
}


def git_commit() -> str:
    """Commit of the checkout, with ``+`` if tracked files differ from it; empty outside a repository.

    The environment of an installed package may lie in the repository of another project, whose commit says nothing.
    """
    if IS_INSTALLED:
        return ''

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
