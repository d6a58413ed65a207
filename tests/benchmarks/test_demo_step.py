"""benchmarks/demo_step.py: own times of parts, and turns."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))

import demo_step


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(demo_step, 'clock', lambda: now.seconds)
    return now


def test_a_part_is_without_those_within_it(clock):
    watch = demo_step.Stopwatch()

    def take(seconds, *others):
        clock.seconds += seconds
        for other in others:
            other()

    masks = watch.wrap(lambda: take(2), 'masks')
    seeds = watch.wrap(lambda: take(1), 'seeds')
    loader = watch.wrap(lambda: take(10, masks, seeds, masks), 'loader')
    loader()
    masks()
    assert watch.seconds == dict(masks=6, seeds=1, loader=10)


def test_turns_of_the_loop_and_of_the_bare_step_alternate(clock, monkeypatch):
    def bare(runner, batch):
        def step():
            clock.seconds += 3 * batch

        return step

    monkeypatch.setattr(demo_step, 'bare_step', bare)
    turns = demo_step.Turns(count=2, size=5, compare=True)

    def iterate(iterations):
        for iteration in iterations:
            clock.seconds += 4
            turns.tick(SimpleNamespace(iter=iteration), 1)

    iterate(range(14))  # a turn of warm-up, and almost two
    with pytest.raises(demo_step.Done):
        iterate([14])
    assert turns.loop == [20, 20]
    assert turns.bare == [15, 15]
