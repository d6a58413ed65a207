"""Who is named as lost: by the times of beats alone, and through a store."""

import time
from dataclasses import replace

import pytest
import torch.distributed as dist

from bootmae.distributed.beats import Beat, Observer, connect, key, last_beat
from bootmae.engine.hooks.heartbeat import Heart, HeartbeatHook

BEATS = [Beat(rank, f'node{rank}', 100 + rank, phase='step', iteration=7, files=[f'{rank}.jpg']) for rank in range(3)]


class Run:
    """Beats of three ranks, second by second."""

    def __init__(self):
        self.observer, self.now, self.beats = Observer(3, limit=10, patience=100, now=0), 0, list(BEATS)

    def pass_time(self, seconds: int, silent=(), moving=()) -> str | None:
        for _ in range(seconds):
            self.now += 1
            for rank, beat in enumerate(self.beats):
                if rank not in silent:
                    beat = replace(beat, count=beat.count + 1, progress=beat.progress + (rank in moving))
                    self.beats[rank] = beat
                    self.observer.see(beat, self.now)
            verdict = self.observer.verdict(self.now)
            if verdict:
                return verdict
        return None

    def phase(self, *ranks: int, **changes) -> None:
        for rank in ranks:
            self.beats[rank] = replace(self.beats[rank], **changes)


def test_nothing_is_wrong_while_all_move():
    assert Run().pass_time(300, moving=(0, 1, 2)) is None


def test_a_silent_rank_is_named():
    run = Run()
    run.pass_time(5, moving=(0, 1, 2))
    verdict = run.pass_time(30, silent=(1,), moving=(0, 2))
    assert run.now == 5 + 11
    assert verdict == (
        'no sign of life for 10 s from rank 1 (host node1, pid 101, phase step, iteration 7, last files '
        '1.jpg): it was killed or stopped'
    )


def test_a_rank_that_waits_for_its_data_is_named():
    """The others are in the step of the same iteration, waiting for its gradients."""
    run = Run()
    run.phase(2, phase='data')
    verdict = run.pass_time(30)
    assert run.now == 1 + 11
    assert verdict == (
        'no rank has made progress for 10 s; behind is rank 2 (host node2, pid 102, phase data, '
        'iteration 7, last files 2.jpg)'
    )


def test_one_rank_that_moves_proves_that_all_are_well():
    run = Run()
    run.phase(2, phase='data')
    assert run.pass_time(50, moving=(1,)) is None


@pytest.mark.parametrize('phase', ['start', 'save', 'val', 'between epochs'])
def test_long_phases_have_more_time(phase):
    run = Run()
    run.phase(0, phase=phase)
    assert run.pass_time(99) is None
    assert 'behind is rank 0 (host node0' in run.pass_time(5)


def test_a_standstill_at_one_place_names_all():
    verdict = Run().pass_time(30)
    assert all(f'rank {rank} ' in verdict for rank in range(3))
    assert '(all are at the same place)' in verdict


def test_a_rank_that_never_came():
    observer = Observer(2, limit=10, patience=100, now=0)
    verdicts = []
    for now in range(1, 103):
        observer.see(replace(BEATS[0], count=now, progress=now), now)
        verdicts.append(observer.verdict(now))
    assert verdicts[:100] == [None] * 100
    assert 'rank 1 (never heard of)' in verdicts[100]


def test_a_rank_that_is_done_may_be_silent():
    run = Run()
    run.phase(1, phase='end')
    run.pass_time(1)
    assert run.pass_time(50, silent=(1,), moving=(0, 2)) is None


def hearts(port: int, **settings) -> tuple[list[Heart], list[tuple[int, str]]]:
    failures: list[tuple[int, str]] = []
    made = [
        Heart(
            connect('127.0.0.1', port, 5),
            BEATS[rank],
            2,
            1.5,
            60,
            0.1,
            lambda rank=rank: [f'{rank}.png'],
            lambda verdict, rank=rank: failures.append((rank, verdict)),
            **settings,
        )
        for rank in range(2)
    ]
    return made, failures


def move_until(heart: Heart, end: float) -> None:
    """Progress of a training thread, until the time or the verdict: only what the others do is judged then."""
    while heart.threads[1].is_alive() and time.monotonic() < end:
        heart.move('step', 8)
        time.sleep(0.05)


def test_through_a_store():
    """Two ranks, of which one falls silent; and what the launcher finds of it."""
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    (zero, one), failures = hearts(store.port)
    assert last_beat('127.0.0.1', store.port, 1) is None
    zero.start()
    one.start()
    move_until(zero, time.monotonic() + 2)  # longer than the limit
    assert failures == []
    one.stop()
    move_until(zero, time.monotonic() + 20)
    zero.stop()
    assert [rank for rank, _ in failures] == [0]
    assert failures[0][1].startswith('no sign of life for 1.5 s from rank 1 (host node1, pid 101, phase step')
    assert last_beat('127.0.0.1', store.port, 1) == replace(BEATS[1], count=one.count, files=['1.png'])
    assert store.check([key(0)])


def test_a_lost_store_is_noticed():
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    (zero, _), failures = hearts(store.port)
    zero.start()
    time.sleep(0.3)
    del store
    zero.threads[1].join(timeout=10)
    zero.stop()
    assert 'does not answer' in failures[0][1]


@pytest.mark.parametrize('settings', [dict(interval=0), dict(limit=3), dict(limit=2000)])
def test_settings(settings):
    with pytest.raises(ValueError, match='each must be larger than the one before'):
        HeartbeatHook(**settings)
