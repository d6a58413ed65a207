"""State of a cell on disk: its attempts, and a lock that tells whether it is running.

The cell's folder holds ``cell.json`` (written atomically), ``rows.csv`` with its results, ``log.txt`` of its commands,
and ``lock``. The running command inherits the lock, so that a cell is never started twice, even if the suite is killed
and its command lives on.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkpoints.folders import run_files
from ..evaluation.rows import config_hash
from ..results.rows import replace_file
from ..text import count_of
from .cells import Cell, suite_command

DONE, RUNNING, FAILED, STOPPED, KILLED, WAITING = 'done', 'running', 'failed', 'stopped', 'killed', 'waiting'
ELSEWHERE = 'running elsewhere'
BLOCKED = 'blocked'
MARK_PARTS, MARK_BYTES = 64, 1 << 16  # of a file of weights: number of parts that are read, and their size


@dataclass
class JobState:
    """The content of ``cell.json``.

    Attributes:
        state: State of the last attempt; ``running`` with a free lock means that it was killed.
        definition: The cell's definition; see :func:`definition`.
        attempts: Begin and end (seconds since 1970), exit code, host and process ID of each attempt.
        length: Epochs or iterations of its training, for the progress line.
        detail: Reason of a failure, in one line.
    """

    state: str = WAITING
    definition: str = ''
    attempts: list[dict[str, Any]] = field(default_factory=list)
    length: dict[str, int] = field(default_factory=dict)
    detail: str = ''

    @property
    def seconds(self) -> float:
        """Total seconds of finished attempts."""
        return sum(attempt['end'] - attempt['begin'] for attempt in self.attempts if attempt.get('end'))


def read_job_state(cell: Cell) -> JobState:
    """The stored state of a cell; a new one if it was never started.

    Raises:
        ValueError: The file is damaged.
    """
    path = cell.folder / 'cell.json'
    if not path.is_file():
        return JobState()
    try:
        return JobState(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}): delete the folder {cell.folder} to run the cell again'
        ) from None


def write_job_state(cell: Cell, job: JobState) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    replace_file(cell.folder / 'cell.json', json.dumps(asdict(job), indent=1) + '\n')


def begin_attempt(cell: Cell, job: JobState) -> None:
    """Store that the cell is running."""
    job.state, job.detail = RUNNING, ''
    job.attempts.append(dict(begin=time.time(), host=socket.gethostname(), pid=os.getpid()))
    write_job_state(cell, job)


def end_attempt(cell: Cell, job: JobState, state: str, code: int | None = None, detail: str = '') -> None:
    """Store how the attempt ended."""
    job.attempts[-1].update(end=time.time(), code=code)
    job.state, job.detail = state, detail
    write_job_state(cell, job)


class CellLock:
    """The lock of one cell. The cell's command inherits the file descriptor and then holds the lock too."""

    def __init__(self, cell: Cell):
        self.path = cell.folder / 'lock'
        self.file: int | None = None

    def take(self) -> bool:
        """Try to take the lock; returns whether it worked. An OSError names the file where there are no locks."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            self.release()
            return False
        except OSError as error:
            self.release()
            raise OSError(
                error.errno, f'{error.strerror}: put --out on a file system with locks', str(self.path)
            ) from error

    def release(self) -> None:
        if self.file is not None:
            with suppress(OSError):
                os.close(self.file)
            self.file = None


def is_free(cell: Cell) -> bool:
    """Whether no process is running the cell."""
    if not (cell.folder / 'lock').exists():
        return True
    lock = CellLock(cell)
    free = lock.take()
    lock.release()
    return free


def is_done(cell: Cell, job: JobState) -> bool:
    """Whether the cell is stored as done and, for an evaluation, has its rows."""
    return job.state == DONE and (cell.task is None or cell.rows_file.is_file())


def state_of(cell: Cell, job: JobState | None = None) -> str:
    """The current state of a cell."""
    job = job or read_job_state(cell)
    if is_done(cell, job):
        return DONE
    if not is_free(cell):
        return ELSEWHERE
    if job.state == RUNNING:
        return KILLED
    return WAITING if job.state == DONE else job.state


def definition(cell: Cell, cfg: Config, pretraining: str = '') -> str:
    """What a cell does, as text. If it differs from the stored one, the old results belong to another experiment.

    It is a hash, followed by what older cells have not stored (see :func:`is_same`): the draw of few labeled images,
    and a mark of the given weights.

    Args:
        cell: The cell.
        cfg: Its config, with its options.
        pretraining: Definition of the cell that it needs.
    """
    task = cell.task
    given = cell.method.weights if task else cell.method.init
    source = () if task or not given else (cell.method.init_source,)
    weights = cell.weights if given else None
    if weights != cell.given_weights:
        given = weights  # the newest checkpoint of a folder
    encoder = (pretraining.partition(' ')[0] or given, cell.method.source, *source)
    # no element for "test: false": cells that ran before this key existed stay done
    judged = (task.kind, task.labels or ('all',), task.tta, *(['test'] if task.test else [])) if task else ()
    text = json.dumps([config_hash(cfg), cell.seed, encoder, judged], default=str)
    words = [hashlib.sha256(text.encode()).hexdigest()[:12]]
    images = cfg.train_dataloader.dataset
    if images.get('labels_per_class'):
        words.append(f'subset_seed={images.get("subset_seed", 0)}')
    if weights and Path(weights).is_file():
        words.append(f'weights={mark_of(Path(weights))}')
    return ' '.join(words)


def mark_of(path: Path) -> str:
    """Hash of the size and of parts of a file, evenly spread and at its end, where torch stores its checksums.

    Weights of another training differ in all parts, and files are too large to read them for every call.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open('rb') as file:
        for start in (*range(0, size, max(size // MARK_PARTS, MARK_BYTES)), max(size - MARK_BYTES, 0)):
            file.seek(start)
            digest.update(file.read(MARK_BYTES))
    return digest.hexdigest()[:12]


def is_same(stored: str, now: str) -> bool:
    """Whether a stored definition is that of now, as far as both tell.

    Older cells have stored the hash alone, and the file of given weights may be gone.
    """
    (one, *first), (other, *second) = stored.split(), now.split()
    ours, theirs = (dict(word.split('=') for word in words) for words in (first, second))
    return one == other and all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


def has_results(cell: Cell) -> bool:
    """Whether the cell has produced anything: rows or checkpoints."""
    return cell.rows_file.is_file() or bool(run_files(cell.run))


def changed_cells(cells: Sequence[Cell], definitions: dict[str, str]) -> list[Cell]:
    """Cells that have results of another definition. A cell that failed before it produced any is none of them."""
    found = []
    for cell in cells:
        job = read_job_state(cell)
        same = not job.definition or is_same(job.definition, definitions[cell.name])
        if not same and (has_results(cell) or is_done(cell, job)):
            found.append(cell)
    return found


def check_definitions(cells: Sequence[Cell], definitions: dict[str, str], redone: Collection[str] = ()) -> None:
    """Refuse to mix results of two definitions of a cell.

    Args:
        cells: Cells to run.
        definitions: Definition of each cell by name.
        redone: Names of cells whose results will be deleted before, so that they need no check.

    Raises:
        ValueError: Cells have results of another definition. The message lists them with one command.
    """
    if fault := fault_of_definitions(cells, definitions, redone):
        raise ValueError(fault)


def fault_of_definitions(cells: Sequence[Cell], definitions: dict[str, str], redone: Collection[str] = ()) -> str:
    """Cells that have results of another definition, with one command; empty if there are none."""
    changed = changed_cells([cell for cell in cells if cell.name not in redone], definitions)
    if not changed:
        return ''
    names = {cell.name for cell in changed}.union(redone)
    # --redo includes the evaluations that need a pretraining
    roots = [cell.name for cell in cells if cell.name in names and not (cell.needs and cell.needs.name in names)]
    return (
        f'{len(changed)} of {count_of(len(cells), "cell")} have results of another config, option or encoder than the '
        f'suite file has now: {", ".join(cell.name for cell in changed)}. This command deletes them'
        f'{" and those of --redo" if redone else ""} and runs the cells again:\n'
        f'    {suite_command(changed[0])} --redo {" ".join(roots)}\n'
        'Or undo the change, or use another folder with --out'
    )
