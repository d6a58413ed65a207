"""Signals are recorded, and the workers of a loader outlive them."""

import os
import signal

import torch

from bootmae.distributed.signals import StopSignals, start_worker


def test_a_worker_outlives_signals_until_the_run_leaves():
    """The signals of a scheduler go to all processes; the last one is that of Python's exit."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        leaving = torch.zeros(1)
        start_worker(0, lambda worker: os.write(writing, b'inner, '), leaving)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.write(writing, b'alive')
        leaving.fill_(1)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(reading, 100) == b'inner, alive'
    os.close(reading)


def test_the_first_signal_counts():
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    signals.restore()
    assert signals.asked is signal.SIGUSR1
