"""Checkpoints are written whole or not at all, and none is overwritten unasked."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..files import write_file
from .checksum import DIGESTS, SummingFile, tensors_digest

OVERHEAD = 1 << 20  # bytes of a file beside its tensors: names, histories, the config


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


def bytes_of(content: object) -> int:
    """Bytes of the tensors in nested dicts and lists, memory that several share counted once, as in a torch file."""
    storages = {}

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        elif isinstance(value, (dict, list, tuple)):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item)

    visit(content)
    return sum(storages.values())


def write_checkpoint(path: str | Path, content: dict) -> None:
    """Write a dict of weights and plain types: as safetensors if the path ends so, else as torch does.

    Either has a checksum that :func:`read_checkpoint` verifies. Tensors go straight to the disk: no copy of the file
    is made in memory.

    Args:
        path: the file; replaced if it exists, see :func:`check_target`.
        content: ``meta['bootmae']`` holds facts of plain types, ``meta['iter']`` the iteration of a run; for
            safetensors, beside it a ``state_dict`` only.

    Raises:
        OSError: if it could not be written, e.g. for lack of space; an older file is what it was.
        ValueError: for weights that safetensors has no place for.
    """
    room = bytes_of(content) + OVERHEAD
    if Path(path).suffix != '.safetensors':
        write_file(path, lambda file: _save_torch(content, file), room)
        return
    if several := sorted(set(content) - {'state_dict', 'meta'}):
        raise ValueError(
            f'{path}: a .safetensors file has no place for {", ".join(several)}: give a name that ends in .pth'
        )
    # Some of our weights share memory, which safetensors does not take.
    tensors = {key: value.detach().clone().contiguous() for key, value in content['state_dict'].items()}
    header = dict(format='pt', bootmae=json.dumps(content['meta']['bootmae']))
    digest = tensors_digest(tensors, header)
    header |= {name: digest for name in DIGESTS}
    write_file(path, lambda file: save_file(tensors, file, metadata=header), bytes_of(tensors) + OVERHEAD)


def _save_torch(content: dict, path: Path) -> None:
    meta = content.get('meta')
    iteration = meta.get('iter') if isinstance(meta, dict) else None
    with path.open('wb') as file:
        summing = SummingFile(file)
        try:
            torch.save(content, summing)
        except RuntimeError as error:  # torch's own, for what failed below it
            if summing.error is None:
                raise
            raise summing.error from error
        summing.mark(iteration if isinstance(iteration, int) else None)
