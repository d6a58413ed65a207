"""Only one process trains in a folder."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from bootmae.checkpoints import run_lock
from bootmae.checkpoints.run_lock import check_free, take, training_in

HOLDS = """
import os, sys, time
from pathlib import Path
from bootmae.checkpoints.run_lock import training_in
with training_in(Path(sys.argv[1])):
    worker = os.fork() if len(sys.argv) == 4 else 1  # a data worker, which outlives a killed process
    if worker != 1:
        print(worker, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, 'PATIENCE', 0.3)


@pytest.fixture
def hold(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a process that trains in ``tmp_path`` for some seconds; returns it when it has the lock."""
    started = []

    def start(seconds: float, *more: str) -> subprocess.Popen:
        command = [sys.executable, '-c', HOLDS, str(tmp_path), str(seconds), *more]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        while not (tmp_path / 'train.lock').exists() or not (tmp_path / 'train.lock').read_text():
            assert started[-1].poll() is None
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_dead(hold, tmp_path, capsys):
    first = hold(60)
    message = rf'process {first.pid} on \S+, since 20\S+ \S+, is training here.* delete {tmp_path / "train.lock"}'
    for refused in (lambda: training_in(tmp_path).__enter__(), lambda: check_free(tmp_path)):
        with pytest.raises(ValueError, match='^' + re.escape(f'{tmp_path}: ') + message):
            refused()
    assert f'waiting up to 0.3 s for process {first.pid} on' in capsys.readouterr().err
    first.kill()
    first.wait()
    check_free(tmp_path)
    with training_in(tmp_path):
        assert (tmp_path / 'train.lock').read_text().startswith(f'process {os.getpid()} on ')
    assert list(tmp_path.iterdir()) == []


def test_it_waits_for_a_process_that_ends(hold, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, 'PATIENCE', 30)
    first = hold(0.5)
    with training_in(tmp_path):
        assert first.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_data_workers_of_a_killed_process_do_not_hold_it(hold, tmp_path):
    first = hold(60, 'with a worker')
    worker = int(first.stdout.readline())
    try:
        first.kill()
        first.wait()
        os.kill(worker, 0)
        with training_in(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(monkeypatch, tmp_path, number):
    def lockf(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'lockf', lockf)
    with training_in(tmp_path / 'new'):
        check_free(tmp_path / 'new')
    assert list((tmp_path / 'new').iterdir()) == []


def test_a_file_that_its_holder_deletes_in_between_is_no_lock(monkeypatch, tmp_path):
    path, lock, times = tmp_path / 'train.lock', fcntl.lockf, []

    def lockf(file: int, how: int) -> None:
        if not times:
            path.unlink()
        times.append(how)
        lock(file, how)

    monkeypatch.setattr(fcntl, 'lockf', lockf)
    file = take(path)
    assert os.path.samestat(os.fstat(file), path.stat())
    assert len(times) == 2
    os.close(file)


def test_a_folder_that_a_run_cannot_use(monkeypatch, tmp_path):
    """Also in a dry run, which creates nothing."""
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to('nowhere')
    for name, above in (('file', 'file'), ('file/a/b', 'file'), ('link', 'link')):
        for refused in (lambda: training_in(tmp_path / name).__enter__(), lambda: check_free(tmp_path / name)):  # noqa: B023
            with pytest.raises(ValueError, match=rf'{name} cannot .* because {tmp_path / above} is no folder: use ano'):
                refused()
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # permissions do not bind root
    with pytest.raises(
        ValueError, match=rf'new/run cannot .*: you may not write to {tmp_path}; use another --work-dir'
    ):
        check_free(tmp_path / 'new' / 'run')
    assert {path.name for path in tmp_path.iterdir()} == {'file', 'link'}


def test_the_lock_of_another_user_is_named(monkeypatch, tmp_path):
    (tmp_path / 'train.lock').write_text('process 7 on far')

    def forbidden(path, *args):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'open', forbidden)
    for refused in (lambda: training_in(tmp_path).__enter__(), lambda: check_free(tmp_path)):
        with pytest.raises(ValueError, match=f'process 7 on far, is training here.* delete {tmp_path / "train.lock"}'):
            refused()
    (tmp_path / 'train.lock').unlink()
    with pytest.raises(PermissionError):
        take(tmp_path / 'train.lock')


def test_the_error_of_a_run_is_not_hidden(monkeypatch, tmp_path):
    """A folder that has become read-only keeps the lock; the run has failed to save."""

    def forbidden(path, missing_ok=False):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))

    def fail() -> None:
        with training_in(tmp_path):
            monkeypatch.setattr(type(tmp_path), 'unlink', forbidden)
            raise OSError('not saved')

    with pytest.raises(OSError, match='^not saved$'):
        fail()
