"""The launcher forwards the first Ctrl-C and ends all processes at the second; it prints the line of one process."""

import logging
import os
import signal
import socket
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bootmae.distributed import launch
from bootmae.distributed.launch import PatientAgent

NOTES = (
    'import signal, time; signal.signal(signal.SIGINT, lambda *a: print("asked", flush=True)); print("up", flush=True)'
)


@pytest.fixture
def agent(monkeypatch):
    """An agent without torchrun."""
    monkeypatch.setattr(launch.LocalElasticAgent, '__init__', lambda self: None)
    return PatientAgent()


def test_the_second_ctrl_c_kills_what_the_first_has_asked(agent, monkeypatch, capsys):
    process = subprocess.Popen(
        [sys.executable, '-c', f'{NOTES}; time.sleep(60); time.sleep(60)'],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    monkeypatch.setattr(agent, '_processes', lambda: {0: process})
    assert process.stdout.readline() == b'up\n'
    agent._forward(signal.SIGINT, None)
    assert process.stdout.readline() == b'asked\n'
    assert process.poll() is None
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SignalException):
        agent._forward(signal.SIGINT, None)
    signal.signal(signal.SIGINT, before)
    assert process.wait(10) == -signal.SIGKILL
    assert capsys.readouterr().err.count('a second Ctrl-C ends it at once') == 1
    process.stdout.close()


def test_a_later_sigterm_kills_and_one_that_comes_twice_does_not(agent, monkeypatch, tmp_path, capsys):
    """A scheduler and the parent may both send the first one."""
    process = subprocess.Popen(
        [sys.executable, '-c', f'{NOTES.replace("SIGINT", "SIGTERM")}; [time.sleep(60) for _ in range(9)]'],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(agent, '_processes', lambda: {0: process})
    assert process.stdout.readline() == b'up\n'
    for _ in range(2):
        agent._forward(signal.SIGTERM, None)
        assert process.stdout.readline() == b'asked\n'
    agent.terminated -= launch.AGAIN

    def ask_again(given) -> None:
        agent._forward(signal.SIGTERM, None)

    monkeypatch.setattr(launch.torchrun, 'run', ask_again)
    try:
        assert launch.run(['train.py'], tmp_path) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert process.wait(10) == -signal.SIGKILL
    assert capsys.readouterr().err == 'launcher: stopped by a second SIGTERM, without saving\n'
    process.stdout.close()


@pytest.mark.parametrize(
    'codes, said, code',
    [
        ({0: 2, 1: 2}, 'error: wrong 0\n', 2),
        ({1: 2}, 'error: wrong 1\n', 2),
        ({0: 75, 1: 75}, 'launcher: rank 0 ended\nerror: wrong 0\n', 75),
        ({1: -9}, 'launcher: rank 0 ended\nerror: wrong 1\n', 5),
        ({0: -2}, 'launcher: rank 0 ended\nerror: wrong 0\n', 130),
    ],
)
def test_the_line_of_the_cause_is_the_last_one(agent, monkeypatch, tmp_path, capsys, codes, said, code):
    """A user error has no other line."""
    for rank in (0, 1):
        (tmp_path / str(rank)).write_text(f'error: wrong {rank}')
    agent.first, agent.report, agent.asked = codes, 'rank 0 ended', None if code == 5 else 1.0

    def fail(given) -> None:
        raise ChildFailedError('train', {0: None})

    monkeypatch.setattr(ChildFailedError, '__init__', lambda self, name, failures: None)
    monkeypatch.setattr(launch.torchrun, 'run', fail)
    assert launch.run(['train.py'], tmp_path) == code
    assert capsys.readouterr().err == said


def test_a_port_in_use_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(PatientAgent, 'latest', None)
    monkeypatch.setattr(launch.api, 'LocalElasticAgent', launch.LocalElasticAgent)
    monkeypatch.delenv(launch.MESSAGES, raising=False)
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = ['--master_addr=127.0.0.1', f'--master_port={port}', '--nproc_per_node=1', 'no_such_tool.py']
        try:
            assert launch.main(given) == 2
        finally:
            logging.disable(logging.NOTSET)
            os.environ.pop(launch.MESSAGES, None)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert line.startswith('error: the processes were not started: ')
    assert f'port: {port}' in line
    assert line.endswith('. Check PORT, or NNODES, NODE_RANK and MASTER_ADDR, of tools/dist_train.sh')
