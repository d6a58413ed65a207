"""Reads config files."""

import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..results.provenance import REPOSITORY, from_anywhere
from .sizes import fill_sizes


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config and apply ``--cfg-options``. Sets the default scope of the registries.

    A relative path starts in this folder or at the top of the repository.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = from_anywhere(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
        where = '' if path.is_absolute() else f' in {Path.cwd()} or {REPOSITORY}'
        raise FileNotFoundError(
            f'no config {path}{where}: {"there are " + ", ".join(near) if near else "see configs/"}'
        )
    if str(REPOSITORY) not in sys.path:  # so that custom_imports find examples/
        sys.path.append(str(REPOSITORY))
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(options or {})
    fill_sizes(cfg)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return cfg
