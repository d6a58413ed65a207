"""torchrun whose processes can end in good order: ``python bootmae/distributed/launch.py`` takes torchrun's arguments.

torchrun kills its processes 30 seconds after a signal, or at once after another one's end, and always exits with 1.
This launcher hands SIGTERM and SIGUSR1 on and waits for the processes to save, and exits with the code of the one that
ended first (exits.py). It runs as a script: the package imports the whole stack, which takes seconds.
"""

import signal
import socket
import sys
import time
from types import FrameType

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api

if __package__:
    from .beats import last_beat
    from .exits import BAD_DATA, LOST_RANK, NONFINITE, REQUEUE, USER_ERROR
    from .signals import STOP_SIGNALS
else:
    from beats import last_beat
    from exits import BAD_DATA, LOST_RANK, NONFINITE, REQUEUE, USER_ERROR
    from signals import STOP_SIGNALS

ORDERLY = (NONFINITE, BAD_DATA, REQUEUE)  # all processes of a run end so, within moments
SETTLE = 20.0  # seconds that the others get to follow one that ended so
GRACE = 300.0  # seconds from a signal to the end; a scheduler's patience is usually shorter
MEANING = {
    USER_ERROR: 'something given is wrong',
    NONFINITE: 'losses or gradients are not finite',
    BAD_DATA: 'too many unreadable images',
    LOST_RANK: 'another process died or hangs',
    REQUEUE: 'stopped by a signal; start again with --resume',
}


def cause(codes: dict[int, int]) -> tuple[int, int]:
    """Rank and code of the process to blame, among those that ended by themselves before any other was stopped."""
    order = (*(-number for number in range(1, 65)), *ORDERLY, LOST_RANK, USER_ERROR)
    return min(codes.items(), key=lambda item: (order.index(item[1]) if item[1] in order else len(order), item[0]))


def exit_code(code: int, asked: bool) -> int:
    """Of the launcher, for a process's; one that dies of a signal is a lost rank, unless the signal was handed on."""
    if code < 0:
        return REQUEUE if asked and -code in STOP_SIGNALS else LOST_RANK
    return code


def describe(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f'was killed by {signal.Signals(-code).name} (exit code {128 - code})'
    return f'ended with exit code {code}' + (f': {MEANING[code]}' if code in MEANING else '')


class PatientAgent(LocalElasticAgent):
    """torchrun's agent, with patience. The last one made is ``latest``: torchrun keeps it to itself."""

    latest: 'PatientAgent | None' = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        PatientAgent.latest = self
        self.asked: float | None = None  # when a signal came
        self.settling: float | None = None  # since when some have ended in good order
        self.first: dict[int, int] = {}  # exit codes by rank, before any process was stopped
        self.report = ''

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        early: list[int] = []  # signals that came while the processes were being started
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: early.append(number))
        pids = super()._start_workers(worker_group)
        for number in STOP_SIGNALS:
            signal.signal(number, self._hand_on)
        for caught in early:
            self._hand_on(caught, None)
        return pids

    def _processes(self) -> dict:
        """The processes by local rank, as ``subprocess`` knows them."""
        return {rank: handler.proc for rank, handler in self._pcontext.subprocess_handlers.items()}

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        """Signal the processes, not their data loaders' workers: the run still needs those."""
        if self.asked is None:
            self.asked = time.monotonic()
        for process in self._processes().values():
            if process.poll() is None:
                process.send_signal(number)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Look at the processes; torchrun stops all when one has failed, so first let those end that are about to."""
        codes = {rank: process.poll() for rank, process in self._processes().items()}
        failed = {rank: code for rank, code in codes.items() if code not in (None, 0)}
        orderly = bool(failed) and all(code in ORDERLY for code in failed.values())
        if None in codes.values() and orderly and self._has_time('settling', SETTLE):
            return RunResult(state=WorkerState.HEALTHY)
        if self.asked is not None and not self._has_time('asked', GRACE):
            self._kill()
        if failed:
            self._note(worker_group, failed)
        result = super()._monitor_workers(worker_group)
        if orderly and worker_group.group_world_size > 1:
            self._exit_barrier_timeout = SETTLE
            self._exit_barrier()  # the agents of other nodes need this one's store until they are done
        return result

    def _has_time(self, since: str, seconds: float) -> bool:
        """Whether an attribute's moment, now if it is None, is less than so many seconds ago."""
        if getattr(self, since) is None:
            setattr(self, since, time.monotonic())
        return time.monotonic() - getattr(self, since) < seconds

    def _kill(self) -> None:
        print(f'launcher: processes not ended {GRACE:g} s after the signal are killed', file=sys.stderr, flush=True)
        for process in self._processes().values():
            process.kill()

    def _note(self, worker_group: WorkerGroup, failed: dict[int, int]) -> None:
        """Find the culprit while the store is still there."""
        if self.first:
            return
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self.first = {ranks[local]: code for local, code in failed.items()}
        rank, code = cause(self.first)
        pid = next(process.pid for local, process in self._processes().items() if ranks[local] == rank)
        beat = last_beat(worker_group.master_addr, worker_group.master_port, rank) if code < 0 else None
        where = f'; last heard: {beat}' if beat is not None else ''
        self.report = f'rank {rank} (host {socket.gethostname()}, pid {pid}) {describe(code)}{where}'


def main(arguments: list[str] | None = None) -> int:
    """Run torchrun with our agent; gives the exit code."""
    api.LocalElasticAgent = PatientAgent  # torchrun has no option for another agent
    try:
        given = torchrun.parse_args(arguments)
        given.signals_to_handle = 'SIGINT,SIGHUP,SIGQUIT'  # the others are the agent's
        torchrun.run(given)
    except ChildFailedError as error:
        agent = PatientAgent.latest
        codes = agent.first or {rank: failure.exitcode for rank, failure in error.failures.items()}
        _, code = cause(codes)
        print(f'launcher: {agent.report}', file=sys.stderr, flush=True)
        return exit_code(code, agent.asked is not None)
    except SignalException as stopped:  # Ctrl-C, or the terminal is gone
        print(f'launcher: stopped by {stopped.sigval.name}', file=sys.stderr, flush=True)
        return 128 + stopped.sigval
    return 0


if __name__ == '__main__':
    sys.exit(main())
