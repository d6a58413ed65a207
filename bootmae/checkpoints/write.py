"""Safe writing: a file is there whole or not at all, and none is overwritten unasked."""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from .marks import DIGESTS, SummingFile, tensors_digest

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


def write_file(path: str | Path, save: Callable[[Path], None], size: int = 0) -> None:
    """Let ``save`` write a temporary file beside a path, see it safely on the disk, then give it its name.

    Args:
        path: the file; until the last moment an older one of this name is what it was.
        save: writes the file that it is given.
        size: bytes that it will need, if known.

    Raises:
        OSError: if there is less space than that, or anything fails; nothing half-written stays.
    """
    path = Path(path)
    check_space(path, size)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        save(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_space(path: Path, size: int) -> None:
    """Raise an OSError, before anything is written, where a file of this many bytes has no room."""
    free = shutil.disk_usage(path.parent).free if size else 0
    if size > free:
        raise OSError(errno.ENOSPC, f'not written: {size / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free; make '
                      'room in this folder or choose another disk', str(path))


def remove_stale(folder: str | Path) -> list[Path]:
    """Delete temporary files that writers left when they were killed; gives these.

    A writer that lives on this machine, or that began within the hour and cannot be told from one, keeps its file.
    """
    stale = []
    for path in sorted(Path(folder).glob('.*.*.tmp')):
        if (match := re.fullmatch(r'\..+\.(\d+)\.tmp', path.name)) and not _is_written(path, int(match[1])):
            path.unlink(missing_ok=True)
            stale.append(path)
    return stale


def _is_written(path: Path, pid: int) -> bool:
    """Whether a process of this number lives, and the file is young; this one writes nothing at the moment."""
    try:
        os.kill(pid, 0)
        return pid != os.getpid() and time.time() - path.stat().st_mtime < 3600
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except PermissionError:  # it lives and is another user's
        return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        raise ValueError(f'{path}: a .safetensors file has no place for {", ".join(several)}: give a name that ends in '
                         '.pth')
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
