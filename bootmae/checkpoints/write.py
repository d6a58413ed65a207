"""Atomic writing of checkpoints, which never replaces a file unasked."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..files import write_file
from .checksum import DIGESTS, SummingFile, tensors_digest

OVERHEAD = 1 << 20  # bytes of a file beside its tensors: names, histories, config


def check_target(path: str | Path, force: bool = False) -> None:
    """Raise an error early if a file cannot or must not be written.

    Args:
        path: the file to write.
        force: allow replacing an existing file.

    Raises:
        FileNotFoundError: if the folder of the file does not exist.
        FileExistsError: if the file exists and ``force`` is not set.
        ValueError: if the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder: use the path of a file')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'no folder {path.parent} for {path.name}: create it first')
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists: use another name, or --force to replace it')


def bytes_of(content: object) -> int:
    """Bytes of the tensors in nested dicts and lists. Shared memory counts once, as in a torch file."""
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
    """Write a dict of weights and plain types as a torch file, or as safetensors if the path ends in ``.safetensors``.

    Both formats get a checksum that :func:`read_checkpoint` verifies. Torch files are written directly to the disk,
    without a copy in memory.

    Args:
        path: the file. An existing file is replaced; see :func:`check_target`.
        content: ``meta['bootmae']`` holds facts of plain types and ``meta['iter']`` the iteration of a run. For
            safetensors only ``meta`` and ``state_dict`` are allowed.

    Raises:
        OSError: if the file could not be written, e.g. because the disk is full. An older file stays as it was.
        ValueError: if the content does not fit a safetensors file.
    """
    room = bytes_of(content) + OVERHEAD
    if Path(path).suffix != '.safetensors':
        write_file(path, lambda file: _save_torch(content, file), room)
        return
    if several := sorted(set(content) - {'state_dict', 'meta'}):
        raise ValueError(
            f'{path}: a .safetensors file has no place for {", ".join(several)}: use a name that ends in .pth'
        )
    # safetensors does not take tensors that share memory.
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
        except RuntimeError as error:  # torch's error for an OSError below it
            if summing.error is None:
                raise
            raise summing.error from error
        summing.mark(iteration if isinstance(iteration, int) else None)
