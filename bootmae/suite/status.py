"""Output of a running suite: a line for each event, and progress with the time left."""

import datetime
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from .cells import Cell
from .job_state import BLOCKED, DONE, ELSEWHERE, FAILED, KILLED, RUNNING, STOPPED, JobState, read_job_state, state_of
from .running import SuiteRun

ENDS = (DONE, FAILED, STOPPED, BLOCKED)
MARKS = {DONE: 'done', RUNNING: 'start', FAILED: 'FAILED', STOPPED: 'stopped', BLOCKED: 'blocked'}
REFRESH, PAUSE = 1.0, 20.0  # seconds between progress lines: on a terminal, in a file


class TolerantOutput(io.TextIOBase):
    """Output that may fail, because the disk is full or its reader has ended, without ending a suite; said once.

    Args:
        out: Output stream; None if the shell has closed it.
    """

    def __init__(self, out: TextIO | None):
        self.out, self.told = out, False

    def write(self, text: str) -> int:
        """Write the text if that is possible."""
        try:
            if self.out is not None:
                print(text, end='', file=self.out, flush=True)
        except OSError as error:
            if not self.told:
                self.told = True  # first, because this may be stderr
                print(f'the output was not written: {error}. The suite continues', file=sys.stderr)
        return len(text)

    def isatty(self) -> bool:
        """Whether the output is a terminal."""
        return self.out is not None and self.out.isatty()


class Status:
    """Prints events and progress: a line that is updated on a terminal, new lines elsewhere.

    Args:
        cells: Cells of this call.
        out: Output stream, by default that of this process.
    """

    def __init__(self, cells: Sequence[Cell], out: TextIO | None = None):
        self.cells, self.out, self.begin = cells, out or sys.stdout, time.monotonic()
        self.drawn = self.begin
        self.bar, self.ended = self.out.isatty(), sum(state_of(cell) == DONE for cell in cells)

    def tell(self, cell: Cell, state: str, text: str) -> None:
        """Print one event of a cell."""
        if state == RUNNING and not self.bar and not text:
            return  # in a log file, starts are noise
        self.ended += state in ENDS
        total = len(self.cells)
        place = '' if state == RUNNING else f'{self.ended}/{total}'
        seconds = read_job_state(cell).seconds
        took = f' ({duration(seconds)})' if state in (DONE, FAILED, STOPPED) and seconds else ''
        self._clear()
        head = f'{duration(time.monotonic() - self.begin):>8} {place:>{2 * len(str(total)) + 1}}'
        print(
            f'{head} {MARKS.get(state, state):<7} {cell.name}{took}{": " + text if text else ""}',
            file=self.out,
            flush=True,
        )

    def tick(self, suite: SuiteRun) -> None:
        """Show the progress, if the last time is long enough ago. In a file of a long run, lines become rarer."""
        now = time.monotonic()
        if now - self.drawn < (REFRESH if self.bar else max(PAUSE, (now - self.begin) / 50)):
            return
        self.drawn = now
        if self.bar:
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            print(self.line(suite)[:width], end='', file=self.out, flush=True)
        else:
            print(f'{duration(now - self.begin):>8} {self.line(suite)}', file=self.out, flush=True)

    def line(self, suite: SuiteRun) -> str:
        """The bar, the time left, and the progress of each running cell."""
        states = list(suite.states.values())
        done = sum(state in ENDS for state in states)
        filled = 20 * done // max(len(states), 1)
        left = time_left(suite)
        running = ', '.join(run.cell.name + percent(progress(run.cell, run.job)) for run in suite.running)
        return (
            f'[{"#" * filled}{"." * (20 - filled)}] {done}/{len(states)} '
            f'{"about " + duration(left) + " left" if left is not None else "time left unknown"}  {running}'
        )

    def _clear(self) -> None:
        if self.bar:
            print('\r\033[K', end='', file=self.out)


def duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def time_left(suite: SuiteRun) -> float | None:
    """Estimated seconds until all cells are done, from the times of cells that are done or under way; None without any.

    A cell of a training or task that has not begun yet counts as the mean of the others.
    """
    took: dict[str, list[float]] = {}
    begun = {run.cell.name: time.monotonic() - run.begin for run in suite.running}
    for cell in suite.cells:
        if suite.states[cell.name] == DONE:
            took.setdefault(cell.training.name, []).append(read_job_state(cell).seconds)
    for run in suite.running:
        if share := progress(run.cell, run.job):
            took.setdefault(run.cell.training.name, [begun[run.cell.name] / share])
    if not took:
        return None
    mean = {name: sum(values) / len(values) for name, values in took.items()}
    usual = sum(mean.values()) / len(mean)
    left = [
        max(mean.get(cell.training.name, usual) - begun.get(cell.name, 0.0), 0.0)
        for cell in suite.cells
        if suite.states[cell.name] not in ENDS
    ]
    lanes = max(suite.machine.total // max(map(suite.machine.share, suite.cells)), 1)
    return max(sum(left) / lanes, max(left, default=0.0))


def progress(cell: Cell, job: JobState) -> float:
    """Share of a training that is done, from its last log line; 0 if unknown."""
    files = sorted(cell.run.glob('*/vis_data/scalars.json'))  # their folders are times
    if not files or not job.length:
        return 0.0
    try:
        record = json.loads(last_line(files[-1]))
        key = 'epoch' if 'max_epochs' in job.length else 'step'
        return min(record[key] / next(iter(job.length.values())), 1.0)
    except (ValueError, KeyError, TypeError):
        return 0.0


def percent(share: float) -> str:
    return f' {100 * share:.0f} %' if share else ''


def last_line(path: Path) -> str:
    """The last complete line of a file."""
    with path.open('rb') as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 4096, 0))
        return file.read().decode(errors='replace').rstrip().rpartition('\n')[2]


def interrupted(cells: Sequence[Cell]) -> list[str]:
    """A line for each cell that an earlier call started and did not finish."""
    lines = []
    for cell in cells:
        job = read_job_state(cell)
        state = state_of(cell, job)
        # Without an attempt, another call has just taken the lock.
        if not job.attempts or state not in (KILLED, STOPPED, FAILED, ELSEWHERE):
            continue
        attempt = job.attempts[-1]
        began = datetime.datetime.fromtimestamp(attempt['begin']).strftime('%Y-%m-%d %H:%M:%S')
        if state == ELSEWHERE:
            lines.append(f'still running: {cell.name}, started {began} on {attempt["host"]}; this call waits for it')
            continue
        again = (
            'resumes from its newest checkpoint'
            if any('--resume' in command for command in cell.commands(0))
            else 'starts over'
        )
        lines.append(
            f'{state}: {cell.name}, started {began} on {attempt["host"]}'
            f'{"; " + job.detail if job.detail else ""}; it {again}'
        )
    return lines
