"""Terminal output of a running suite: a line for each event, and a progress bar with the time left."""

import datetime
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
REFRESH = 1.0  # seconds


class Status:
    """Prints events and, on a terminal, a progress line that is updated every second.

    Args:
        cells: Cells of this call.
        out: Output stream.
    """

    def __init__(self, cells: Sequence[Cell], out: TextIO = sys.stdout):
        self.cells, self.out, self.begin, self.drawn = cells, out, time.monotonic(), 0.0
        self.bar, self.ended = out.isatty(), sum(state_of(cell) == DONE for cell in cells)

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
        """Update the progress line, at most once a second."""
        if self.bar and time.monotonic() - self.drawn > REFRESH:
            self.drawn = time.monotonic()
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            print(self.line(suite)[:width], end='', file=self.out, flush=True)

    def line(self, suite: SuiteRun) -> str:
        """The bar, the time left, and the progress of each running cell."""
        states = list(suite.states.values())
        done = sum(state in ENDS for state in states)
        filled = 20 * done // max(len(states), 1)
        left = time_left(suite)
        running = ', '.join(f'{run.cell.name}{progress(run.cell, run.job)}' for run in suite.running)
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
    """Estimated seconds until all cells are done, from the times of finished ones; None without any."""
    took: dict[str, list[float]] = {}
    for cell in suite.cells:
        if suite.states[cell.name] == DONE:
            took.setdefault(cell.training.name, []).append(read_job_state(cell).seconds)
    if not took:
        return None
    mean = {name: sum(values) / len(values) for name, values in took.items()}
    usual = sum(mean.values()) / len(mean)
    begun = {run.cell.name: time.monotonic() - run.begin for run in suite.running}
    left = [
        max(mean.get(cell.training.name, usual) - begun.get(cell.name, 0.0), 0.0)
        for cell in suite.cells
        if suite.states[cell.name] not in ENDS
    ]
    lanes = max(suite.machine.total // max(map(suite.machine.share, suite.cells)), 1)
    return max(sum(left) / lanes, max(left, default=0.0))


def progress(cell: Cell, job: JobState) -> str:
    """Progress of a training in percent, from its last log line; empty if unknown."""
    files = sorted(cell.run.glob('*/vis_data/scalars.json'))  # their folders are times
    if not files or not job.length:
        return ''
    try:
        record = json.loads(last_line(files[-1]))
        key = 'epoch' if 'max_epochs' in job.length else 'step'
        return f' {100 * min(record[key] / next(iter(job.length.values())), 1):.0f} %'
    except (ValueError, KeyError, TypeError):
        return ''


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
        if state not in (KILLED, STOPPED, FAILED, ELSEWHERE):
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
