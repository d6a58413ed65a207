"""Processes that start with the stack imported.

Importing the stack takes 5 s of CPU time, which is more than many cells of a small suite need. A server imports it once
and forks a process for each command, which runs the script as ``python SCRIPT ...`` would, in a session and with an
output of its own. The server computes nothing, because threads of OpenMP or BLAS and a CUDA context do not survive a
fork. It is for the CPU only: importing mmengine asks CUDA for its devices, which a forked process cannot use then.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # those that stop a cell
MOST = 1 << 17  # bytes of a message
POLL = 0.1  # seconds


class ForkServer:
    """The server, as the suite sees it. It ends with the suite, also if that is killed.

    Args:
        modules: Modules that it imports.
        folder: Working directory of all commands.
        environment: Environment of all commands.

    Raises:
        ChildProcessError: An import failed.
    """

    def __init__(self, modules: Sequence[str], folder: Path, environment: Mapping[str, str]):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._started: list[int] = []
        self._codes: dict[int, int] = {}
        self._error, self._ended = '', False
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, '-m', __name__, str(theirs.fileno()), *modules],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # signals to the suite's group do not reach it
            )
        self._next_started()

    def start(self, command: Sequence[str], output: int, lock: int) -> 'ForkedProcess':
        """Run ``[python, script, *arguments]`` in a new process.

        Args:
            command: The command.
            output: File descriptor of its output and errors.
            lock: File descriptor that the process inherits.

        Raises:
            ChildProcessError: The server was killed.
        """
        with suppress(OSError):  # a server that has ended is noticed below
            socket.send_fds(self._socket, [json.dumps(command).encode()], [output, lock])
        return ForkedProcess(self, self._next_started())

    def _next_started(self) -> int:
        """Wait for a process that has started and return its ID. The first one is the server, with its imports done."""
        while not (self._started or self._ended):  # the handler of a signal may receive as well
            select.select([self._socket], [], [], POLL)
            self._receive()
        if self._ended:
            raise ChildProcessError(
                f'the server that starts the cells has ended ({self._error or f"exit code {self._server.wait()}"}): '
                'see make doctor if an import failed, else run the same command again'
            )
        return self._started.pop()

    def take_code(self, pid: int) -> int | None:
        """Exit code of a process, once; None while it runs. Without the server, which knows the codes, it is killed."""
        self._receive()
        if self._ended and pid not in self._codes:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return -signal.SIGKILL
        return self._codes.pop(pid, None)

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._server.wait()

    def _receive(self) -> None:
        """Note what the server has sent."""
        with suppress(BlockingIOError):
            while not self._ended:
                try:
                    text = self._socket.recv(MOST, socket.MSG_DONTWAIT)
                except ConnectionResetError:
                    text = b''
                message = json.loads(text or '{}')
                self._ended = not message
                self._error = message.get('error', self._error)
                self._started += message.get('started', [])
                self._codes.update(message.get('codes', []))


@dataclass
class ForkedProcess:
    """A process of the server. Its methods are those of :class:`subprocess.Popen`."""

    server: ForkServer
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.take_code(self.pid)
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL)
        return code


def serve(connection: socket.socket, modules: Sequence[str]) -> list[str]:
    """Fork a process for each command until the suite has ended. Only these processes return, with their command."""
    try:
        for name in modules:
            importlib.import_module(name)
    except Exception as error:
        tell(connection, error=f'{type(error).__name__}: {error}')
        sys.exit(1)
    gc.collect()
    gc.freeze()  # mmengine collects garbage for each data set
    handlers = {number: signal.signal(number, lambda *args: None) for number in SIGNALS}
    tell(connection, started=[os.getpid()])
    while True:
        if select.select([connection], [], [], POLL)[0]:
            text, files, _, _ = socket.recv_fds(connection, MOST, 2)
            if not text:
                sys.exit()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the process has its own handlers
            pid = os.fork()
            if pid == 0:
                become_command(files[0], handlers)  # the lock stays open
                return json.loads(text)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for file in files:
                os.close(file)
            tell(connection, started=[pid])
        tell_ended(connection)


def become_command(output: int, handlers: dict[signal.Signals, Any]) -> None:
    """Give this process what a new one would have."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    np.random.seed()  # unlike Python's generator, NumPy's would be the same in each process


def tell_ended(connection: socket.socket) -> None:
    """Send the exit codes of processes that have ended."""
    with suppress(ChildProcessError):  # there is none
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            tell(connection, codes=[[found[0], os.waitstatus_to_exitcode(found[1])]])


def tell(connection: socket.socket, **message: Any) -> None:
    with suppress(BrokenPipeError):  # the suite was killed
        connection.send(json.dumps(message).encode())


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        command = serve(connection, sys.argv[2:])
    sys.argv = command[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
