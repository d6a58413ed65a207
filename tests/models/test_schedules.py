"""EMA decay and feature weight of every epoch, against the authors' release."""

import json

import pytest

from bootmae.models.schedules import EMA_BASE, EMA_LARGE, ema_decay, feature_weight

EPOCHS = 801


@pytest.fixture
def release(golden):
    return json.loads((golden / 'schedules.json').read_text())


@pytest.mark.parametrize('key, points', [('ema_base', EMA_BASE), ('ema_large', EMA_LARGE)])
def test_ema_decay_equals_the_release(release, key, points):
    assert len(release[key]) == EPOCHS
    for epoch, expected in enumerate(release[key]):
        assert ema_decay(epoch, points) == pytest.approx(expected, abs=1e-12, rel=0), epoch


@pytest.mark.parametrize(
    'epoch, base, large',
    [
        (0, 0.999, 0.999),
        (50, 0.99945, 0.99945),
        (99, 0.999891, 0.999891),
        (100, 0.9999, 0.9999),
        (250, 0.999945, 0.9999),
        (400, 0.99999, 0.9999),
        (800, 0.99999, 0.9999),
        (5000, 0.99999, 0.9999),
    ],
)
def test_ema_decay_at_its_corners(epoch, base, large):
    assert ema_decay(epoch) == pytest.approx(base, abs=1e-12, rel=0)
    assert ema_decay(epoch, EMA_LARGE) == pytest.approx(large, abs=1e-12, rel=0)


def test_ema_decay_through_other_points():
    points = ((2, 0.5), (4, 0.9))
    assert [ema_decay(epoch, points) for epoch in range(6)] == pytest.approx([0.5, 0.5, 0.5, 0.7, 0.9, 0.9])
    assert ema_decay(7, ((0, 0.99),)) == 0.99


def test_feature_weight_equals_the_release(release):
    assert len(release['feature_weight']) == EPOCHS
    for epoch, expected in enumerate(release['feature_weight']):
        assert feature_weight(epoch, EPOCHS) == pytest.approx(expected, abs=1e-12, rel=0), epoch


@pytest.mark.parametrize(
    'total, ramp, expected',
    [
        (8, 0.25, [0.5, 1, 1, 1]),
        (8, 0.5, [0.25, 0.5, 0.75, 1]),
        (8, 1.0, [0.125, 0.25, 0.375, 0.5]),
        (1, 0.25, [1, 1, 1, 1]),
    ],
)
def test_feature_weight_at_other_lengths(total, ramp, expected):
    assert [feature_weight(epoch, total, ramp) for epoch in range(4)] == pytest.approx(expected)
