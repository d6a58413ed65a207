"""Numbers of all ranks, one step later; in one process and in two."""

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
    flags = AsyncCounters(('stop', 'bad'))
    assert flags.group is None
    assert flags.exchange(stop=1) == dict(stop=0, bad=0)
    assert flags.exchange(bad=3) == dict(stop=1, bad=0)
    assert flags.last() == dict(stop=0, bad=3)
    assert flags.gather('mine') == ['mine']
    assert flags.exchange() == dict(stop=0, bad=3)


def two_ranks(rank: int, port: int) -> None:
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    flags = AsyncCounters(('stop', 'bad'))
    seen = [flags.exchange(stop=rank == 1 and step == 2, bad=10 * step + rank) for step in range(4)]
    assert [sums['stop'] for sums in seen] == [0, 0, 0, 1]
    assert [sums['bad'] for sums in seen] == [0, 1, 21, 41]
    assert flags.gather([rank] * rank) == [[], [1]]
    assert flags.broadcast(f'of {rank}') == 'of 0'
    assert flags.exchange() == dict(stop=0, bad=61)
    flags.last()
    flags.gather(None)  # waits
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_decide_in_the_same_step():
    mp.start_processes(two_ranks, (free_port(),), nprocs=2, start_method='fork')
