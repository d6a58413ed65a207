"""Sums over all ranks, known one step later; in one process and in two."""

import os
import socket

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from bootmae.distributed.counters import AsyncCounters


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_one_process_has_the_same_lag():
    counters = AsyncCounters()
    counters.register('stop')
    counters.register('bad')
    counters.register('bad')  # by a second training of the same run
    assert counters.group is None
    assert (counters.exchange('bad', 0), counters.exchange('stop', True)) == (0, 0)
    assert (counters.exchange('bad', 3), counters.exchange('stop', False)) == (0, 1)
    assert counters.wait() == dict(stop=0, bad=3)
    assert counters.gather('mine') == ['mine']
    assert (counters.exchange('stop', 0), counters.exchange('bad', 0)) == (0, 3)


def two_ranks(rank: int, port: int) -> None:
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    counters = AsyncCounters()
    counters.register('stop')
    counters.register('bad')
    seen = []
    for step in range(4):
        bad = counters.exchange('bad', 10 * step + rank)
        seen.append((counters.exchange('stop', rank == 1 and step == 2), bad))
    assert seen == [(0, 0), (0, 1), (0, 21), (1, 41)]
    assert counters.gather([rank] * rank) == [[], [1]]
    assert counters.broadcast(f'of {rank}') == 'of 0'
    assert counters.wait() == dict(stop=0, bad=61)
    counters.gather(None)  # waits
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_decide_in_the_same_step():
    mp.start_processes(two_ranks, (free_port(),), nprocs=2, start_method='fork')
