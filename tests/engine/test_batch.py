"""The recipe's global batch on any number of GPUs, and remedies that work."""

import re

import pytest

from bootmae.engine.batch import Batch, divisors, settle_batch


@pytest.mark.parametrize('gpus, per_gpu, recipe, accumulation, expected', [
    (8, 512, 4096, None, (8, 512, 1)),
    (4, 512, 4096, None, (4, 512, 2)),
    (1, 512, 4096, None, (1, 512, 8)),
    (16, 256, 4096, None, (16, 256, 1)),
    (8, 1024, 16384, None, (8, 1024, 2)),
    (1, 3, 12, None, (1, 3, 4)),
    (2, 512, 4096, 4, (2, 512, 4)),  # given
    (3, 10, None, None, (3, 10, 1)),  # no recipe: whatever comes out
    (3, 10, None, 5, (3, 10, 5)),
])
def test_settle_batch(gpus, per_gpu, recipe, accumulation, expected):
    batch = settle_batch(gpus, per_gpu, recipe, accumulation)
    assert batch == Batch(*expected)
    assert batch.global_size == expected[0] * expected[1] * expected[2]
    assert recipe in (None, batch.global_size)


@pytest.mark.parametrize('recipe', [32, 1024, 4096, 50])
@pytest.mark.parametrize('per_gpu', [1, 7, 60, 512, 5000])
def test_kept_or_refused_with_a_remedy_that_works(recipe, per_gpu):
    for gpus in range(1, 17):
        accumulation = max(recipe // (gpus * per_gpu), 1)
        if gpus * per_gpu * accumulation == recipe:
            assert settle_batch(gpus, per_gpu, recipe).global_size == recipe
            continue
        with pytest.raises(ValueError, match='--auto-scale-lr') as refusal:
            settle_batch(gpus, per_gpu, recipe)
        size = re.search(r'train_dataloader\.batch_size=(\d+) \(accumulation (\d+) follows\)', str(refusal.value))
        fitting = re.search(r'use one of \[([\d, ]+)\] GPUs', str(refusal.value))
        assert bool(size) == (recipe % gpus == 0)
        if size:
            assert int(size[1]) <= per_gpu
            assert settle_batch(gpus, int(size[1]), recipe) == Batch(gpus, int(size[1]), int(size[2]))
        else:
            assert all(recipe % int(n) == 0 for n in fitting[1].split(','))


def test_three_gpus_do_not_divide_the_batch():
    with pytest.raises(ValueError, match=r'3 GPUs x 512 x accumulation 2 = 3072, but the recipe\'s batch is 4096\. '
                       r'3 GPUs do not divide it: use one of \[1, 2, 4, 8, 16, 32, 64\] GPUs'):
        settle_batch(3, 512, 4096)


def test_a_given_accumulation_is_not_corrected_in_silence():
    with pytest.raises(ValueError, match='8 GPUs x 512 x accumulation 2 = 8192'):
        settle_batch(8, 512, 4096, 2)


@pytest.mark.parametrize('gpus, per_gpu, accumulation', [(0, 8, None), (1, 0, None), (-1, 8, None), (1, 8, 0)])
def test_nonsense_is_refused(gpus, per_gpu, accumulation):
    with pytest.raises(ValueError, match='all must be at least 1'):
        settle_batch(gpus, per_gpu, 32, accumulation)


def test_text_and_divisors():
    assert str(Batch(4, 512, 2)) == '4 GPUs x 512 x accumulation 2 = 4096'
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
