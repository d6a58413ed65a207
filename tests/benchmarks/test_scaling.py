"""benchmarks/scaling.py: bytes, rings and what of them a step waits for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))

import scaling

STEP = scaling.Step(images_per_s=1000.0, batch=256, device='a GPU', source='a test')


def test_trainable_parameters_are_those_of_the_release():
    assert scaling.trainable_parameters('bootmae_vitb') == 115_373_251


def test_a_ring_sends_nearly_twice_the_bytes():
    assert scaling.ring_seconds(400e6, 1, 50e9) == 0
    assert scaling.ring_seconds(400e6, 8, 50e9) == pytest.approx(2 * 7 / 8 * 400e6 / 50e9)


@pytest.mark.parametrize(
    ('backward', 'expected'),
    [
        (10.0, 0.15),  # all fits behind the backward pass, but for the last bucket, which comes when it has ended
        (1.0, 0.5),  # the pass is too short
        (0.0, 1.5),
    ],
)
def test_a_step_waits_for_the_rest_and_the_last_bucket(backward, expected):
    assert scaling.exposed_seconds(100, 4, 100, backward, bucket=10) == pytest.approx(expected)


def test_small_gradients_are_one_bucket():
    assert scaling.exposed_seconds(5, 2, 5, backward=9, bucket=10) == pytest.approx(1)


def test_one_gpu_is_as_fast_as_measured():
    row = scaling.project(STEP, 'MAE', 4e8, 1, 50e9, 4096)
    assert (row['images_per_s'], row['efficiency_percent'], row['exposed_ms']) == pytest.approx((1000, 100, 0))
    assert row['gpu_hours'] == pytest.approx(800 * 1_281_167 / 1000 / 3600)


def test_many_gpus_share_the_global_batch():
    """64 images a GPU take 64 ms, of them 42.7 ms backward; 100 ms of exchange without the last bucket's."""
    size = 100e-3 / (2 * 63 / 64) * 1e9 + scaling.BUCKET
    last = 2 * 63 / 64 * scaling.BUCKET / 1e9
    row = scaling.project(STEP, 'MAE', size, 64, 1e9, 4096)
    seconds = 64e-3 + (100e-3 - 2 / 3 * 64e-3) + last
    assert row['step_ms'] == pytest.approx(1e3 * seconds)
    assert row['images_per_s'] == pytest.approx(4096 / seconds)
    assert row['efficiency_percent'] == pytest.approx(100 * 64e-3 / seconds)
    assert row['gpu_hours'] == pytest.approx(64 * row['hours'])


def test_only_the_last_micro_batch_hides_the_exchange():
    """512 images a GPU in two halves of 256: the pass beside which gradients travel is that of 256."""
    row = scaling.project(STEP, 'BootMAE', 1e9 + scaling.BUCKET, 8, 1e9, 4096)
    last = 1.75 * scaling.BUCKET / 1e9
    assert row['exposed_ms'] == pytest.approx(1e3 * (1.75 - 38.6 / 93.0 * 0.256 + last))


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match='--global-batch 4096 cannot be divided among 48 GPUs'):
        scaling.project(STEP, 'MAE', 1, 48, 1, 4096)


def test_the_fastest_step_of_the_last_day_on_a_gpu_counts():
    row = dict(
        method='BootMAE',
        arch='base',
        img_size='224',
        route='loop',
        device='NVIDIA H100',
        batch='256',
        images_per_s='3400',
        date='2026-11-25 10:00',
        commit='abc',
    )
    older = row | dict(images_per_s='9000', date='2026-11-24 10:00')
    others = [
        row | dict(images_per_s='8000') | change
        for change in (
            dict(device='AMD EPYC, 2 cores'),
            dict(route='bare'),
            dict(arch='large'),
            dict(method='MAE'),
            dict(img_size='32'),
        )
    ]
    step = scaling.newest_step([older, row, row | dict(images_per_s='3000'), *others], 'BootMAE', 'ViT-B')
    assert step == scaling.Step(3400.0, 256, 'NVIDIA H100', 'measured 2026-11-25 10:00, commit abc')
    assert scaling.newest_step(others[:2], 'BootMAE', 'ViT-B') is None
    without_route = {key: value for key, value in row.items() if key != 'route'} | dict(method='MAE', arch='b')
    assert scaling.newest_step([without_route], 'MAE', 'ViT-B') is not None
