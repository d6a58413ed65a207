"""Heartbeats of real threads through a store, and the events that move them."""

import io
import logging
import os
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from bootmae.distributed.beats import Beat, connect, key, last_beat
from bootmae.engine.hooks.heartbeat import Heart, HeartbeatHook

BEATS = [Beat(rank, f'node{rank}', 100 + rank, phase='step', iteration=7, files=[f'{rank}.jpg']) for rank in range(2)]


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
    """Record progress as a training thread does, until a time or until a rank is found lost."""
    while heart.threads[1].is_alive() and time.monotonic() < end:
        heart.move('step', 8)
        time.sleep(0.05)


def test_through_a_store():
    """One of two ranks becomes silent, and the launcher can read its last heartbeat."""
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
    assert failures[0][1].startswith('no heartbeat for 1.5 s from rank 1 (host node1, pid 101, phase step')
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
    assert 'has not answered' in failures[0][1]


@pytest.mark.parametrize('wrong', [dict(interval=0), dict(limit=3), dict(limit=2000)])
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match='give 0 < interval < limit <= patience'):
        HeartbeatHook(**wrong)


@pytest.mark.parametrize('resumed', [False, True])
def test_the_first_step_counts_as_the_start(resumed):
    """It may compile. A resumed run may repeat its validation before it."""
    hook, runner = HeartbeatHook(), SimpleNamespace(iter=7)
    hook.heart, phases = Heart(None, BEATS[0], 2, 90, 1800, 5, list, pytest.fail), []

    def note(event, *args) -> None:
        event(runner, *args)
        phases.append(hook.heart.beat.phase)

    hook.heart.beat = replace(BEATS[0], phase='start')
    for event in (hook.before_val, hook.after_val_iter, hook.after_val) if resumed else ():
        note(event)
    note(hook.before_train_epoch)
    for event in (hook.before_train_iter, hook.after_train_iter, hook.before_train_iter):
        note(event, 0)
    note(hook.before_val)
    note(hook.after_val)
    assert phases == ['val', 'val', 'start'] * resumed + ['start', 'start', 'data', 'step', 'val', 'data']


def test_other_hooks_report_progress():
    """In a new phase or the current one, which is 'start' before the first step."""
    hook, moves, runner = HeartbeatHook(), [], SimpleNamespace(iter=7)
    hook.heart = SimpleNamespace(beat=SimpleNamespace(phase='start'), move=lambda *args: moves.append(args))
    hook.report_progress(runner)
    hook.report_progress(runner, phase='val')
    assert moves == [('start', 7), ('val', 7)]
    hook.heart = None
    hook.report_progress(runner)


def test_a_lost_rank_ends_this_process_also_if_nobody_reads_its_output(monkeypatch):
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    codes = []
    monkeypatch.setattr(os, '_exit', codes.append)
    monkeypatch.setattr(sys, 'stderr', Broken())
    hook = HeartbeatHook()
    hook.runner = SimpleNamespace(rank=0, logger=logging.Logger('none'))
    with pytest.raises(BrokenPipeError):
        hook._fail('no heartbeat')
    assert codes == [5]
