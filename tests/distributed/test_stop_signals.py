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
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        os.write(writing, b'alive')
        leaving.fill_(1)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(reading, 100) == b'inner, alive'
    os.close(reading)


def test_a_second_ctrl_c_ends_the_process():
    """The first one is only recorded."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signals = StopSignals()
        signals.install()
        os.kill(os.getpid(), signal.SIGINT)
        if signals.asked is not signal.SIGINT:
            os._exit(8)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGINT


def test_a_process_in_the_background_keeps_ignoring_ctrl_c(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGINT)
    signals.restore()
    signal.signal(signal.SIGINT, before)
    assert signals.asked is None


def test_the_first_signal_counts():
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    signals.restore()
    assert signals.asked is signal.SIGUSR1
