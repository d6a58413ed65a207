"""A lock that keeps a second training away from a folder of checkpoints, where the two would overwrite each other."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = 'train.lock'
PATIENCE = 60.0  # seconds for a process that was stopped just now, or for NFS to notice that its machine is gone
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of checkpoints; the file ``train.lock`` in it says who holds it.

    The kernel releases it when this process ends in whatever way, and data workers do not inherit it. NFS and Lustre
    pass it on to other machines. A file system that has no locks is used without one.

    Raises:
        ValueError: another process is still training in the folder after a minute.
    """
    check_usable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file, end = take(path), time.monotonic() + PATIENCE
    if file is None and PATIENCE:
        print(f'{folder}: waiting up to {PATIENCE:g} s for {holder(path)}', file=sys.stderr, flush=True)
    while file is None:
        if time.monotonic() >= end:
            raise ValueError(refusal(folder))
        time.sleep(0.2)
        file = take(path)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone; the error of the run must be seen
            path.unlink()
        os.close(file)


def check_usable(folder: Path) -> None:
    """Raise a ValueError if a run cannot write to a folder or create it."""
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise ValueError(
            f'{folder} cannot be the folder of a run, because {above} is no folder: use another --work-dir'
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f'{folder} cannot be the folder of a run: you may not write to {above}; use another --work-dir'
        )


def check_free(folder: Path) -> None:
    """Raise a ValueError if a process is training in the folder now, or if it cannot be written. Changes nothing."""
    check_usable(folder)
    path = folder / NAME
    if not path.exists():
        return
    try:
        file = os.open(path, os.O_RDWR)
    except PermissionError:
        raise ValueError(refusal(folder)) from None
    try:
        if not locked(file):
            raise ValueError(refusal(folder))
    finally:
        os.close(file)


def take(path: Path) -> int | None:
    """Return the open and locked file, or None if another process has locked it."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # the group may use it, if the umask says so
        except PermissionError:
            if path.exists():  # the file of another user
                return None
            raise
        try:
            free = locked(file)
            if free and is_at(path, file):
                os.ftruncate(file, 0)
                text = f'process {os.getpid()} on {socket.gethostname()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}\n'
                os.write(file, text.encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if not free:
            return None  # else its holder has deleted it in between


def locked(file: int) -> bool:
    """Lock an open file; returns whether it worked, and True where there are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def is_at(path: Path, file: int) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def holder(path: Path) -> str:
    try:
        return path.read_text().strip() or 'another process'
    except OSError:
        return 'another process'


def refusal(folder: Path) -> str:
    path = folder / NAME
    return (
        f'{folder}: {holder(path)}, is training here, and a second run would overwrite its checkpoints: wait for it or '
        f'stop it, or use another --work-dir. If it does not exist anymore, delete {path}. Several processes of one '
        'run need --launcher: see tools/dist_train.sh and tools/slurm_train.sh'
    )
