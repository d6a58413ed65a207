"""What is known of a cell on disk: its state, its attempts, and the lock that says whether it runs at this moment.

Everything is in the cell's folder: ``cell.json`` (written whole or not at all), ``rows.csv`` once it is done,
``log.txt`` of its commands, and ``lock``, which the running command inherits: a cell whose command lives on is not
started twice, be the suite itself killed or started a second time.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from mmengine.config import Config

from ..evaluation.rows import config_hash
from ..results.rows import replace_file
from .cells import Cell

DONE, RUNNING, FAILED, STOPPED, KILLED, WAITING = 'done', 'running', 'failed', 'stopped', 'killed', 'waiting'
ELSEWHERE = 'running elsewhere'
BLOCKED = 'blocked'


@dataclass
class JobState:
    """The content of ``cell.json``.

    Attributes:
        state: of the last attempt; ``running`` with a free lock means that it was killed.
        definition: fingerprint of what the cell is; see :func:`definition`.
        attempts: begin and end (seconds since 1970), exit code, host and process of each.
        length: epochs or iterations of its training, to tell how far it is.
        detail: why it failed, in a line.
    """

    state: str = WAITING
    definition: str = ''
    attempts: list[dict[str, Any]] = field(default_factory=list)
    length: dict[str, int] = field(default_factory=dict)
    detail: str = ''

    @property
    def seconds(self) -> float:
        """Of all attempts that ended."""
        return sum(attempt['end'] - attempt['begin'] for attempt in self.attempts if attempt.get('end'))


def read_job_state(cell: Cell) -> JobState:
    """What is noted of a cell; of one that was never started, nothing.

    Raises:
        ValueError: if the note is damaged.
    """
    path = cell.folder / 'cell.json'
    if not path.is_file():
        return JobState()
    try:
        return JobState(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}): remove the folder {cell.folder}, and the cell is run anew'
        ) from None


def write_job_state(cell: Cell, journal: JobState) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    replace_file(cell.folder / 'cell.json', json.dumps(asdict(journal), indent=1) + '\n')


def begin_attempt(cell: Cell, journal: JobState) -> None:
    """Note that it runs from now on."""
    journal.state, journal.detail = RUNNING, ''
    journal.attempts.append(dict(begin=time.time(), host=socket.gethostname(), pid=os.getpid()))
    write_job_state(cell, journal)


def end_attempt(cell: Cell, journal: JobState, state: str, code: int | None = None, detail: str = '') -> None:
    """Note how it ended."""
    journal.attempts[-1].update(end=time.time(), code=code)
    journal.state, journal.detail = state, detail
    write_job_state(cell, journal)


class CellLock:
    """The lock of one cell; its file descriptor is handed on to the cell's command, which then holds it as well."""

    def __init__(self, cell: Cell):
        self.path = cell.folder / 'lock'
        self.file: int | None = None

    def take(self) -> bool:
        """Whether it is ours now."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            self.release()
            return False

    def release(self) -> None:
        if self.file is not None:
            with suppress(OSError):
                os.close(self.file)
            self.file = None


def is_free(cell: Cell) -> bool:
    """Whether nobody runs the cell at this moment."""
    if not (cell.folder / 'lock').exists():
        return True
    lock = CellLock(cell)
    free = lock.take()
    lock.release()
    return free


def is_done(cell: Cell, journal: JobState) -> bool:
    """Whether it is noted as done, and an evaluation's rows are there."""
    return journal.state == DONE and (cell.task is None or cell.rows_file.is_file())


def state_of(cell: Cell, journal: JobState | None = None) -> str:
    """The state of a cell as it is now."""
    journal = journal or read_job_state(cell)
    if is_done(cell, journal):
        return DONE
    if not is_free(cell):
        return ELSEWHERE
    if journal.state == RUNNING:
        return KILLED
    return WAITING if journal.state == DONE else journal.state


def definition(cell: Cell, cfg: Config, pretraining: str = '') -> str:
    """Fingerprint of what a cell does: where it differs from the noted one, old results are not of this suite.

    Args:
        cell: the cell.
        cfg: its config, with its options.
        pretraining: the fingerprint of the cell that it needs.
    """
    task = cell.task
    encoder = (pretraining or cell.method.weights, cell.method.source)
    # without a test as before there was the key, so that what was run then stays done
    judged = (task.kind, task.labels, task.tta, *(['test'] if task.test else [])) if task else ()
    text = json.dumps([config_hash(cfg), cell.seed, encoder, judged], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_definition(cell: Cell, journal: JobState, now: str) -> None:
    """Refuse to mix results of two definitions of a cell.

    Raises:
        ValueError: if the cell was run as something else.
    """
    if journal.definition and journal.definition != now:
        raise ValueError(
            f'{cell.name} was run with another config, option or encoder than the suite file now says '
            f'({journal.definition}, now {now}): --redo {cell.name} runs it again and drops what it had; or take back '
            'the change, or give the suite another folder by --out'
        )
