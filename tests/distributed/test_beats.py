"""Which rank is named as lost, given only the times of heartbeats."""

from dataclasses import replace

import pytest

from bootmae.distributed.beats import Beat, Observer

BEATS = [Beat(rank, f'node{rank}', 100 + rank, phase='step', iteration=7, files=[f'{rank}.jpg']) for rank in range(3)]


class Run:
    """Heartbeats of three ranks, second by second."""

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
        'no heartbeat for 10 s from rank 1 (host node1, pid 101, phase step, iteration 7, last files '
        '1.jpg): it was killed or suspended'
    )


def test_a_rank_that_waits_for_its_data_is_named():
    """The others wait for its gradients in the step of the same iteration."""
    run = Run()
    run.phase(2, phase='data')
    verdict = run.pass_time(30)
    assert run.now == 1 + 11
    assert verdict == (
        'no rank has made progress for 10 s; the last is rank 2 (host node2, pid 102, phase data, '
        'iteration 7, last files 2.jpg)'
    )


def test_the_limit_that_was_exceeded_is_named():
    """Validation and the start have more time than a step."""
    run = Run()
    for rank in range(3):
        run.phase(rank, phase='val')
    assert run.pass_time(1000).startswith(f'no rank has made progress for {run.observer.patience:g} s')
    never = Observer(2, limit=10, patience=40, now=0)
    assert never.verdict(41).startswith('no heartbeat for 40 s from rank 0')


def test_one_rank_that_moves_proves_that_all_are_well():
    run = Run()
    run.phase(2, phase='data')
    assert run.pass_time(50, moving=(1,)) is None


@pytest.mark.parametrize('phase', ['start', 'save', 'val', 'between epochs'])
def test_long_phases_have_more_time(phase):
    run = Run()
    run.phase(0, phase=phase)
    assert run.pass_time(99) is None
    assert 'the last is rank 0 (host node0' in run.pass_time(5)


def test_a_standstill_at_one_place_names_all():
    verdict = Run().pass_time(30)
    assert all(f'rank {rank} ' in verdict for rank in range(3))
    assert '(all are at the same position)' in verdict


def test_a_rank_that_never_came():
    observer = Observer(2, limit=10, patience=100, now=0)
    verdicts = []
    for now in range(1, 103):
        observer.see(replace(BEATS[0], count=now, progress=now), now)
        verdicts.append(observer.verdict(now))
    assert verdicts[:100] == [None] * 100
    assert 'rank 1 (no heartbeat yet)' in verdicts[100]


def test_a_rank_that_is_done_may_be_silent():
    run = Run()
    run.phase(1, phase='end')
    run.pass_time(1)
    assert run.pass_time(50, silent=(1,), moving=(0, 2)) is None
