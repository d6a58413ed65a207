"""torchrun that lets a run stop in good order: ``python bootmae/distributed/launch.py`` takes torchrun's arguments.

torchrun kills its processes 30 seconds after a signal, or at once when one of them ends, and always exits with 1. This
launcher forwards SIGTERM, SIGUSR1 and the first Ctrl-C, waits for the processes to save, and exits with the code of the
process that ended first (exits.py). The last line of that process is printed once, at the end. A second Ctrl-C or
SIGTERM kills all. It runs as a script, because importing the package takes seconds.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api

if __package__:
    from .beats import last_beat
    from .exits import BAD_DATA, INTERRUPTED, LOST_RANK, MESSAGES, NONFINITE, REQUEUE, USER_ERROR
    from .signals import PRESSED, STOP_SIGNALS
else:
    from beats import last_beat
    from exits import BAD_DATA, INTERRUPTED, LOST_RANK, MESSAGES, NONFINITE, REQUEUE, USER_ERROR
    from signals import PRESSED, STOP_SIGNALS

ORDERLY = (NONFINITE, BAD_DATA, REQUEUE, INTERRUPTED)  # all processes of a run end with these at the same time
SETTLE = 20.0  # seconds that the other processes have to end, too
BRIEF = 5.0  # the same after a user error, which usually all of them meet
AGAIN = 2.0  # seconds after which a SIGTERM is a second one; a scheduler and our parent may both send the first
GRACE = 300.0  # seconds from a signal until processes are killed; schedulers usually wait less
MEANING = {
    USER_ERROR: 'wrong argument, config or file',
    NONFINITE: 'losses or gradients are not finite',
    BAD_DATA: 'too many unreadable images',
    LOST_RANK: 'another process died or hangs',
    INTERRUPTED: 'stopped by Ctrl-C without saving',
    REQUEUE: 'saved and stopped after a signal; start again with --resume',
}


def cause(codes: dict[int, int]) -> tuple[int, int]:
    """Return rank and exit code of the process that caused the end, among those that ended by themselves."""
    order = (*(-number for number in range(1, 65)), *ORDERLY, LOST_RANK, USER_ERROR)
    return min(codes.items(), key=lambda item: (order.index(item[1]) if item[1] in order else len(order), item[0]))


def exit_code(code: int, asked: bool) -> int:
    """Return the launcher's exit code. A process killed by a signal is a lost rank unless the signal was forwarded."""
    if code < 0:
        expected = {-signal.SIGINT: INTERRUPTED} | {-number: REQUEUE for number in STOP_SIGNALS}
        return expected.get(code, LOST_RANK) if asked else LOST_RANK
    return code


def describe(code: int) -> str:
    """Describe how a process ended."""
    if code < 0:
        return f'was killed by {signal.Signals(-code).name} (exit code {128 - code})'
    return f'ended with exit code {code}' + (f': {MEANING[code]}' if code in MEANING else '')


class PatientAgent(LocalElasticAgent):
    """torchrun's agent that waits for processes to save. ``latest`` is the last instance, which torchrun hides."""

    latest: 'PatientAgent | None' = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        PatientAgent.latest = self
        self.asked: float | None = None  # time of the first signal
        self.pressed = False  # Ctrl-C
        self.terminated: float | None = None  # time of the first SIGTERM
        self.settling: float | None = None  # time when the first process ended in good order
        self.first: dict[int, int] = {}  # exit codes by rank of processes that ended by themselves
        self.report = ''

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        early: list[int] = []  # signals that arrive while the processes start
        forwarded = [*STOP_SIGNALS]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell lets background processes ignore it
            forwarded.append(signal.SIGINT)
        for number in forwarded:
            signal.signal(number, lambda number, frame: early.append(number))
        pids = super()._start_workers(worker_group)
        for number in forwarded:
            signal.signal(number, self._forward)
        for caught in early:
            self._forward(caught, None)
        return pids

    def _processes(self) -> dict:
        """Return the ``subprocess`` objects by local rank."""
        return {rank: handler.proc for rank, handler in self._pcontext.subprocess_handlers.items()}

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal to the processes but not to their data loading workers, which the run still needs."""
        if number == signal.SIGINT:
            if self.pressed:
                self._end_at_once(number)
            self.pressed = True
            print(f'\n{PRESSED}', file=sys.stderr, flush=True)
        if number == signal.SIGTERM and not self._has_time('terminated', AGAIN):
            self._end_at_once(number)
        if self.asked is None:
            self.asked = time.monotonic()
        for process in self._processes().values():
            if process.poll() is None:
                process.send_signal(number)

    def _end_at_once(self, number: int) -> None:
        """Kill the processes with their data loading workers; each has a session of its own."""
        signal.signal(number, signal.SIG_IGN)  # nothing may interrupt the way out
        for process in self._processes().values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise SignalException('asked twice', sigval=signal.Signals(number))

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Check the processes. torchrun stops all when one fails, so first wait for those that are about to end."""
        codes = {rank: process.poll() for rank, process in self._processes().items()}
        failed = {rank: code for rank, code in codes.items() if code not in (None, 0)}
        orderly = bool(failed) and all(code in ORDERLY for code in failed.values())
        alike = bool(failed) and all(code in (USER_ERROR, *ORDERLY) for code in failed.values())
        if None in codes.values() and alike and self._has_time('settling', SETTLE if orderly else BRIEF):
            return RunResult(state=WorkerState.HEALTHY)
        if self.asked is not None and not self._has_time('asked', GRACE):
            self._kill()
        if failed:
            self._note(worker_group, failed)
        result = super()._monitor_workers(worker_group)
        if orderly and worker_group.group_world_size > 1:
            self._exit_barrier_timeout = SETTLE
            self._exit_barrier()  # the agents of other nodes need the store of this one until they end
        return result

    def _has_time(self, since: str, seconds: float) -> bool:
        """Whether less than ``seconds`` passed since the time in an attribute, which starts now if it is None."""
        if getattr(self, since) is None:
            setattr(self, since, time.monotonic())
        return time.monotonic() - getattr(self, since) < seconds

    def _kill(self) -> None:
        print(f'launcher: killing processes still alive {GRACE:g} s after the signal', file=sys.stderr, flush=True)
        for process in self._processes().values():
            process.kill()

    def _note(self, worker_group: WorkerGroup, failed: dict[int, int]) -> None:
        """Record which process caused the end while its heartbeat can be read."""
        if self.first:
            return
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self.first = {ranks[local]: code for local, code in failed.items()}
        rank, code = cause(self.first)
        pid = next(process.pid for local, process in self._processes().items() if ranks[local] == rank)
        beat = last_beat(worker_group.master_addr, worker_group.master_port, rank) if code < 0 else None
        where = f'; last heartbeat: {beat}' if beat is not None else ''
        self.report = f'rank {rank} (host {socket.gethostname()}, pid {pid}) {describe(code)}{where}'


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun with ``PatientAgent`` and return the exit code."""
    api.LocalElasticAgent = PatientAgent  # torchrun has no option for another agent
    logging.disable(logging.ERROR)  # torch's reports on each process; the line that matters is printed below
    with tempfile.TemporaryDirectory(prefix='bootmae_') as folder:
        os.environ[MESSAGES] = folder
        return run(arguments, Path(folder))


def run(arguments: list[str] | None, messages: Path) -> int:
    """Run torchrun; print why it ended, and last the line that the process that caused the end has left."""
    try:
        given = torchrun.parse_args(arguments)
        given.signals_to_handle = 'SIGHUP,SIGQUIT'  # the agent handles the others
        torchrun.run(given)
    except ChildFailedError as error:
        agent = PatientAgent.latest
        codes = agent.first or {rank: failure.exitcode for rank, failure in error.failures.items()}
        rank, code = cause(codes)
        message = messages / str(rank)
        if code != USER_ERROR:
            print(f'launcher: {agent.report}', file=sys.stderr, flush=True)
        if message.is_file():
            print(message.read_text(encoding='utf-8'), file=sys.stderr, flush=True)
        return exit_code(code, agent.asked is not None)
    except (OSError, ValueError, RuntimeError) as error:
        if PatientAgent.latest is not None and PatientAgent.latest._pcontext is not None:
            raise
        cause_line = str(error).partition('\n')[0].rstrip('.')
        remedy = 'Check PORT, or NNODES, NODE_RANK and MASTER_ADDR, of tools/dist_train.sh'
        print(f'error: the processes were not started: {cause_line}. {remedy}', file=sys.stderr, flush=True)
        return USER_ERROR
    except SignalException as stopped:  # a second Ctrl-C or SIGTERM, or a closed terminal
        twice = {signal.SIGINT: 'a second Ctrl-C', signal.SIGTERM: 'a second SIGTERM'}
        how = twice.get(stopped.sigval, stopped.sigval.name)
        print(f'launcher: stopped by {how}, without saving', file=sys.stderr, flush=True)
        return 128 + stopped.sigval
    except KeyboardInterrupt:  # before the processes have started
        print('launcher: stopped by Ctrl-C, without saving', file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


if __name__ == '__main__':
    sys.exit(main())
