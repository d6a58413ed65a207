"""Reads config files."""

import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..results.provenance import REPOSITORY
from .sizes import fill_sizes


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config and apply ``--cfg-options``. Sets the default scope of the registries.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path(path).parent.glob('*.py')) if Path(path).parent.is_dir() else []
        raise FileNotFoundError(f'no config {path}: {"there are " + ", ".join(near) if near else "see configs/"}')
    if str(REPOSITORY) not in sys.path:  # so that custom_imports find examples/
        sys.path.append(str(REPOSITORY))
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(options or {})
    fill_sizes(cfg)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return cfg
