"""Safe writing: a file is there whole or not at all, and none is overwritten unasked."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file


def check_target(path: str | Path, force: bool = False) -> None:
    """Refuse a file that cannot or must not be written, before time goes into its content.

    Raises:
        FileNotFoundError: if its folder does not exist.
        FileExistsError: if it exists and must not be replaced.
        ValueError: if it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder: give the path of a file')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'no folder {path.parent} for {path.name}: make it first')
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists: give another name, or --force to replace it')


def write_file(path: str | Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write a temporary file beside a path, see it safely on the disk, then give it its name."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        save(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_checkpoint(path: str | Path, content: dict) -> None:
    """Write a dict of weights and plain types: as safetensors if the path ends so, else as torch does.

    Args:
        path: the file; replaced if it exists, see :func:`check_target`.
        content: ``meta['bootmae']`` holds facts of plain types; for safetensors, beside it a ``state_dict`` only.

    Raises:
        ValueError: for weights that safetensors has no place for.
    """
    if Path(path).suffix != '.safetensors':
        write_file(path, lambda file: torch.save(content, file))
        return
    if several := sorted(set(content) - {'state_dict', 'meta'}):
        raise ValueError(f'{path}: a .safetensors file has no place for {", ".join(several)}: give a name that ends in '
                         '.pth')
    # Some of our weights share memory, which safetensors does not take.
    tensors = {key: value.detach().clone().contiguous() for key, value in content['state_dict'].items()}
    header = dict(format='pt', bootmae=json.dumps(content['meta']['bootmae']))
    write_file(path, lambda file: save_file(tensors, file, metadata=header))
