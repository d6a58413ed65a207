"""Random numbers that depend on (seed, epoch, sample) or on (seed, iteration, rank) alone.

With ordinary seeding, the crop of an image depends on the process and the worker that load it, and on what they have
drawn before. A run on 2 GPUs then differs from a run on 1, and a resumed run from an uninterrupted one. This module
seeds every sample and every training step separately, so no state of a generator needs to be saved.
"""

import random
from itertools import pairwise

import numpy as np
import torch

STEP = 1  # last number of a step's key, so that it never equals the key of a sample
WORD = 0xFFFFFFFF


def sample_seeds(*key: int) -> tuple[int, int, int]:
    """Mix non-negative integers into seeds for ``random``, ``numpy.random`` and ``torch``.

    ``numpy.random.seed`` takes 32 bits, so among 10^9 samples some share a stream of numpy. That does no harm.
    """
    python_seed, numpy_seed, torch_seed = mixed(key)
    return python_seed, numpy_seed >> 32, torch_seed >> 1


def mixed(key: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``np.random.SeedSequence(key).generate_state(3, np.uint64)`` in a third of the time.

    The algorithm is M. E. O'Neill's, and numpy guarantees that it stays. Keys of more than four numbers go to numpy.
    """
    if len(key) > 4 or not all(0 <= number <= WORD for number in key):
        return tuple(np.random.SeedSequence(key).generate_state(3, np.uint64).tolist())
    masks = iter(POOL_MASKS)
    pool = [hashed(int(word), next(masks)) for word in (*key, 0, 0, 0, 0)[:4]]
    for source, target in PAIRS:
        word = pool[target] * 0xCA01F9DD - hashed(pool[source], next(masks)) * 0x4973F715 & WORD
        pool[target] = word ^ word >> 16
    words = [hashed(word, mask) for word, mask in zip(pool + pool, STATE_MASKS)]
    return tuple(low | high << 32 for low, high in zip(words[::2], words[1::2]))


def hashed(word: int, mask: tuple[int, int]) -> int:
    """Hash a word of 32 bits."""
    word = (word ^ mask[0]) * mask[1] & WORD
    return word ^ word >> 16


def hash_masks(first: int, factor: int, number: int) -> list[tuple[int, int]]:
    """Return the constants that hash the words of a sequence, in order."""
    powers = [first * pow(factor, k, WORD + 1) & WORD for k in range(number + 1)]
    return list(pairwise(powers))


PAIRS = [(source, target) for source in range(4) for target in range(4) if source != target]
POOL_MASKS = hash_masks(0x43B0D7E5, 0x931E8875, 4 + len(PAIRS))
STATE_MASKS = hash_masks(0x8B51F9DD, 0x58F38DED, 6)


def seed_generators(*key: int) -> int:
    """Seed the three global CPU generators from ``key`` (16 us) and return the seed of torch.

    ``torch.manual_seed`` would take 120 us and reseed the GPUs, which no data pipeline needs.
    """
    python_seed, numpy_seed, torch_seed = sample_seeds(*key)
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(torch_seed)
    return torch_seed


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed the random numbers of a training step: drop path, dropout, mixup, masks of MAE, sampled boxes.

    Ranks draw different numbers. The generator of the GPU is seeded too, without a synchronization.
    """
    torch_seed = seed_generators(seed, iteration, rank, STEP)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(torch_seed)
