"""Run the cells of a suite on this machine, several at a time, and store how each ends."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from ..distributed.exits import REQUEUE
from ..places import IS_INSTALLED, REPOSITORY, runs_folder
from ..results.rows import read_rows
from .cells import LAST, Cell, last_checkpoint
from .fork_server import ForkedProcess, ForkServer
from .job_state import (
    BLOCKED,
    DONE,
    ELSEWHERE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    CellLock,
    JobState,
    begin_attempt,
    end_attempt,
    is_done,
    read_job_state,
    state_of,
)

POLL = 0.2  # seconds
PATIENCE = 120  # seconds that stopped commands have to save
HASTE = 5  # seconds that a launcher has to kill its processes, whose sessions of their own no signal of ours reaches


@dataclass
class Machine:
    """Devices of the suite: GPU names (as in ``CUDA_VISIBLE_DEVICES``) or CPU lanes.

    Attributes:
        devices: Free devices. A GPU that cells share is among them once for each of these cells.
        total: Number of all devices.
        gpu: Whether they are GPUs.
        lanes: Cells at a time on one device.
    """

    devices: list[str]
    total: int
    gpu: bool
    lanes: int = 1

    def share(self, cell: Cell) -> int:
        """Number of devices of a cell: as many as the suite file says, at most all."""
        return min(cell.training.gpus, self.total // self.lanes) if self.gpu else 1

    def gpus(self, cell: Cell) -> int:
        return self.share(cell) if self.gpu else 0

    def environment(self, devices: Sequence[str]) -> dict[str, str]:
        path = os.pathsep.join(filter(None, ['' if IS_INSTALLED else str(REPOSITORY), os.environ.get('PYTHONPATH')]))
        found = os.environ | {'PYTHONPATH': path}
        if self.gpu:
            return found | {'CUDA_VISIBLE_DEVICES': ','.join(devices)}
        return found | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


@dataclass
class Run:
    """A running cell: its remaining commands and the process of the current one."""

    cell: Cell
    job: JobState
    lock: CellLock
    devices: list[str]
    left: list[list[str]]
    begin: float = field(default_factory=time.monotonic)
    process: subprocess.Popen | ForkedProcess | None = None
    launcher: bool = False
    log: IO | None = None

    def start_next(self, environment: dict[str, str], server: ForkServer | None) -> None:
        """Start its next command, which inherits the lock, in its own process group: Ctrl-C reaches only the suite.

        Args:
            environment: Environment of the command.
            server: What runs Python scripts in this environment, if there is one.
        """
        command = [str(last_checkpoint(self.cell.run)) if word == LAST else word for word in self.left.pop(0)]
        self.log = self.log or (self.cell.folder / 'log.txt').open('w')
        self.launcher = command[0].endswith('.sh')
        if server and command[0] == sys.executable and command[1].endswith('.py'):
            self.process = server.start(command, self.log.fileno(), self.lock.file)
            return
        self.process = subprocess.Popen(
            command,
            cwd=runs_folder(),
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[self.lock.file],
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)

    def close(self) -> None:
        if self.log:
            self.log.close()
        self.lock.release()


def in_turn(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each task and pretraining, then the second ones, and so on.

    How long each kind takes is so known early, and so are complete comparisons of the first seed.
    """
    count: Counter[str] = Counter()
    turns = {}
    for cell in cells:
        turns[cell.name] = count[cell.training.name], cell.task is None  # short ones first
        count[cell.training.name] += 1
    return sorted(cells, key=lambda cell: turns[cell.name])


class SuiteRun:
    """Runs cells in turn, as devices become free and the pretrainings that they need are done.

    Args:
        cells: Cells to run.
        definitions: Definition of each cell by name.
        lengths: Epochs or iterations of each training by name.
        machine: Devices.
        tell: Called with a cell, its state and a text when a cell starts or ends.
        slurm: Partition, if trainings get their nodes from ``srun``.
        server: What runs commands of a single process on the CPU; None: each is started as a new process.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        definitions: dict[str, str],
        lengths: dict[str, dict],
        machine: Machine,
        tell: Callable[[Cell, str, str], None],
        slurm: str | None = None,
        server: ForkServer | None = None,
    ):
        self.cells, self.definitions, self.lengths, self.machine = in_turn(cells), definitions, lengths, machine
        self.tell, self.slurm, self.server = tell, slurm, server
        self.states = {cell.name: state_of(cell) for cell in cells}
        for cell in cells:  # retry those that did not finish
            if self.states[cell.name] not in (DONE, ELSEWHERE):
                self.states[cell.name] = WAITING
        self.running: list[Run] = []
        self.stopping: signal.Signals | None = None
        self.hasty: float | None = None  # time of the second signal

    def run(self, tick: Callable[['SuiteRun'], None] = lambda suite: None) -> bool:
        """Run until everything is done or a signal asks to stop; returns whether all cells are done."""
        handlers = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        try:
            while self._go_on():
                self._reap()
                self._insist()
                if self.stopping is None:
                    self._start()
                tick(self)
                time.sleep(POLL)
        finally:
            self._end_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return all(state == DONE for state in self.states.values())

    def _on_signal(self, number: int, frame) -> None:
        """Ask the running commands to save and stop; kill them at the second signal."""
        if self.stopping is not None:
            self.hasty = self.hasty or time.monotonic()
        self.stopping = signal.Signals(number)
        for run in self.running:
            run.signal(signal.SIGTERM)

    def _insist(self) -> None:
        """End the commands at once after a second signal. A launcher does it if it is asked again."""
        if self.hasty is not None:
            late = time.monotonic() - self.hasty > HASTE
            for run in self.running:
                run.signal(signal.SIGTERM if run.launcher and not late else signal.SIGKILL)

    def _go_on(self) -> bool:
        if self.stopping is not None:
            return bool(self.running)
        return bool(self.running) or any(state in (WAITING, ELSEWHERE) for state in self.states.values())

    def _start(self) -> None:
        """Start the cells that can start, in order."""
        for cell in self.cells:
            state = self.states[cell.name]
            if state == ELSEWHERE:
                self._look_again(cell)
            elif state == WAITING and self._is_ready(cell):
                count = self.machine.share(cell)
                if len(self.machine.devices) >= count:
                    self._begin(cell, [self.machine.devices.pop(0) for _ in range(count)])

    def _is_ready(self, cell: Cell) -> bool:
        """Whether the pretraining that a cell needs is done; if it has failed, the cell is blocked."""
        if cell.needs is None:
            return True
        state = self.states.get(cell.needs.name) or state_of(cell.needs)
        if state in (FAILED, BLOCKED, STOPPED):
            self.states[cell.name] = BLOCKED
            self.tell(cell, BLOCKED, f'{cell.needs.name} {state}')
        return state == DONE

    def _look_again(self, cell: Cell) -> None:
        """Update a cell that was running in another suite, or in a command that outlived its suite."""
        state = state_of(cell)
        if state != ELSEWHERE:
            self.states[cell.name] = DONE if state == DONE else WAITING
            if state == DONE:
                self.tell(cell, DONE, 'by another process')

    def _begin(self, cell: Cell, devices: list[str]) -> None:
        lock = CellLock(cell)
        if not lock.take():
            self.states[cell.name] = ELSEWHERE
            self.machine.devices += devices
            return
        job = read_job_state(cell)
        if is_done(cell, job):  # another suite finished it meanwhile
            lock.release()
            self.machine.devices += devices
            self.states[cell.name] = DONE
            return
        job.definition, job.length = self.definitions[cell.name], self.lengths.get(cell.name, {})
        begin_attempt(cell, job)
        run = Run(cell, job, lock, devices, self._commands(cell))
        resumed = any('--resume' in command for command in run.left)
        self.states[cell.name] = RUNNING
        self.tell(cell, RUNNING, 'resumes from its newest checkpoint' if resumed else '')
        self._start_command(run)
        self.running.append(run)

    def _start_command(self, run: Run) -> None:
        run.start_next(self._environment(run), self.server)
        if self.stopping is not None:  # a signal came meanwhile
            run.signal(signal.SIGTERM)

    def _commands(self, cell: Cell) -> list[list[str]]:
        if self.slurm:  # the job has all GPUs of the suite file, possibly on several nodes
            return cell.commands(cell.training.gpus, self.slurm)
        return cell.commands(self.machine.gpus(cell))

    def _environment(self, run: Run) -> dict[str, str]:
        return dict(os.environ) if self.slurm else self.machine.environment(run.devices)

    def _reap(self) -> None:
        for run in list(self.running):
            code = run.process.poll()
            if code is None:
                continue
            if code == 0 and run.left and self.stopping is None:
                self._start_command(run)
                continue
            self._finish(run, code)

    def _finish(self, run: Run, code: int) -> None:
        """Store how a cell ended and, for a finished evaluation, show its rows."""
        state, detail = self._judge(run, code)
        if state == DONE and run.cell.task is not None:
            try:
                rows = read_rows(run.cell.rows_file)
                detail = ', '.join(f'{row.metric} {row.value:.1f}' for row in rows[:2])
            except (OSError, ValueError) as error:
                state, detail = FAILED, f'no result: {error}'
        end_attempt(run.cell, run.job, state, code, '' if state == DONE else detail)
        run.close()
        self.running.remove(run)
        self.machine.devices += run.devices
        self.states[run.cell.name] = state
        self.tell(run.cell, state, detail)

    def _judge(self, run: Run, code: int) -> tuple[str, str]:
        if code == 0 and not run.left:
            return DONE, ''
        if code == REQUEUE or self.stopping is not None:
            saved = 'saved' if code == REQUEUE else 'starts over' if not run.cell.trains else 'stopped'
            return STOPPED, f'{self.stopping.name if self.stopping else "stopped by a signal"}: {saved}'
        tail = (run.cell.folder / 'log.txt').read_text(errors='replace').strip().splitlines()
        return FAILED, f'exit code {code}: {tail[-1] if tail else "no output"}'

    def _end_all(self) -> None:
        """Stop all commands, so that none is left behind if the suite itself fails."""
        end = time.monotonic() + PATIENCE
        for run in self.running:
            run.signal(signal.SIGTERM)
        while self.running:
            self.stopping = self.stopping or signal.SIGTERM
            if time.monotonic() > end:
                self.hasty = self.hasty or time.monotonic()
            self._insist()
            self._reap()
            time.sleep(POLL)
