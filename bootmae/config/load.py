"""Reads config files."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..places import OURS, REPOSITORY, from_anywhere, our_config, runs_folder
from .channels import apply_channels
from .classes import fill_classes
from .images import apply_images
from .options import IMAGES, OptionText, parse_value
from .settings import apply_options, check_settings, name_types
from .sizes import fill_sizes

# None unsets them, so they are left out: their readers, mmengine's too, ask only whether they are there.
UNSET = ('auto_scale_lr', 'custom_hooks', 'default_hooks', 'env_cfg', 'randomness', 'visualizer')


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply options and check all settings. Sets the default scope of the registries.

    Args:
        path: A config file or the name of one of our configs, see :func:`find_config`.
        options: ``--cfg-options`` as values by dotted key; ``images`` is what ``--data`` gives, see
            :func:`apply_images`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or for an unknown setting.
    """
    path = find_config(path)
    options = dict(options or {})
    cfg = read_file(path)
    init_default_scope(str(options.get('default_scope', cfg.get('default_scope', 'mmpretrain'))))
    name_types(cfg)
    images = options.pop(IMAGES, cfg.get(IMAGES))
    if isinstance(images, OptionText):
        images = parse_value(images, True)
    if images is not None:
        if not images:
            raise ValueError(f'--data (images={images!r}) is empty: give at least one path, or leave it out')
        if twice := [key for key in options if key.rpartition('.')[2] in ('roots', 'data_root')]:
            raise ValueError(f'--data and {twice[0]}={options[twice[0]]} both give the images: leave one out')
        apply_images(cfg, images)
    apply_options(cfg, options)
    name_types(cfg)
    for key in UNSET:
        if cfg.get(key) is None:
            cfg.pop(key, None)
    fill_classes(cfg, options)
    check_settings(cfg)
    apply_channels(cfg)
    fill_sizes(cfg)
    return cfg


def find_config(name: str | Path) -> Path:
    """Find a config file.

    Args:
        name: A path, which starts in this folder or at the top of the repository; or one of our configs as
            ``bootmae_vitb`` or ``bootmae::pretrain/bootmae_vitb.py``.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = our_config(str(name)) if str(name).startswith(OURS) else from_anywhere(name)
    if path.is_file():
        return path
    ours = {file.stem: file for file in sorted((REPOSITORY / 'configs').glob('[!_]*/*.py'))}
    if path.name == str(name) and path.stem in ours:
        return ours[path.stem]
    near = get_close_matches(path.stem, ours, 3)
    beside = sorted(str(file) for file in path.parent.glob('*.py')) if path.parent.is_dir() else []
    remedy = (
        f'did you mean {" or ".join(near)}?'
        if near
        else f'there are {", ".join(beside)}'
        if beside
        else f'see {REPOSITORY}/configs'
    )
    raise FileNotFoundError(
        f'no config {path}{"" if path.is_absolute() else f" in {Path.cwd()} or {REPOSITORY}"}: {remedy}'
    )


def names_config(data: str) -> bool:
    """Whether a path of the user names a config, see :func:`find_config`, and not images. A folder comes first."""
    if os.path.exists(data) or Path(data).suffix:
        return data.endswith('.py') and not os.path.isdir(data)
    with suppress(FileNotFoundError):
        return find_config(data).suffix == '.py'
    return False


def read_file(path: str | Path) -> Config:
    """Read a config file with its bases and custom imports.

    Raises:
        ValueError: if that fails, with the reason.
    """
    if str(runs_folder()) not in sys.path:  # so that custom_imports find examples/ and modules of the user
        sys.path.append(str(runs_folder()))
    try:
        return Config.fromfile(str(path))
    except Exception as error:  # a config is code, which may fail in any way
        reason = ' '.join(str(error).split())  # one line
        raise ValueError(f'{path} cannot be read as a config: {type(error).__name__}: {reason}') from error
