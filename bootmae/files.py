"""Atomic writing: a file is complete or does not exist."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def write_file(path: str | Path, save: Callable[[Path], object], size: int = 0) -> None:
    """Write a temporary file beside a path, flush it to the disk, then rename it.

    Args:
        path: the file; an older one of this name is unchanged until the rename.
        save: writes the file at the path that it gets.
        size: size in bytes, if known, to check the free space first.

    Raises:
        OSError: if there is too little space or writing fails; the temporary file is deleted.
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
    """Raise an OSError if the disk has less free space than ``size`` bytes."""
    free = shutil.disk_usage(path.parent).free if size else 0
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f'not written: {size / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free; free some '
            'space in this folder or choose another disk',
            str(path),
        )


def remove_stale(folder: str | Path) -> list[Path]:
    """Delete and return the temporary files of writers that were killed.

    A file stays if it is less than an hour old and a process with its writer's id runs on this machine.
    """
    stale = []
    for path in sorted(Path(folder).glob('.*.*.tmp')):
        if (match := re.fullmatch(r'\..+\.(\d+)\.tmp', path.name)) and not _is_written(path, int(match[1])):
            path.unlink(missing_ok=True)
            stale.append(path)
    return stale


def _is_written(path: Path, pid: int) -> bool:
    """Whether another process with this id runs and the file is less than an hour old."""
    try:
        os.kill(pid, 0)
        return pid != os.getpid() and time.time() - path.stat().st_mtime < 3600
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except PermissionError:  # the process belongs to another user
        return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
