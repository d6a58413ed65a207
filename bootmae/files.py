"""Safe writing: a file is there whole or not at all."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def write_file(path: str | Path, save: Callable[[Path], object], size: int = 0) -> None:
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
        raise OSError(
            errno.ENOSPC,
            f'not written: {size / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free; make '
            'room in this folder or choose another disk',
            str(path),
        )


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
