"""Random numbers that depend on (seed, epoch, sample) or on (seed, iteration, rank), and on nothing else.

With ordinary seeding the crop of an image depends on which process and worker happens to load it, and on how much each
has drawn before. A run on 2 GPUs then differs from a run on 1, and a resumed run from an unbroken one. Here every
sample and every training step starts from a seed of its own instead, so no generator's state needs to be saved.
"""

import random
from itertools import pairwise

import numpy as np
import torch

STEP = 1  # last number of a step's key, which so never equals a sample's
WORD = 0xFFFFFFFF


def sample_seeds(*key: int) -> tuple[int, int, int]:
    """Mix non-negative integers into seeds for ``random``, ``numpy.random`` and ``torch``.

    ``numpy.random.seed`` takes 32 bits, so some of 10^9 visits share numpy's stream. That does no harm.
    """
    python_seed, numpy_seed, torch_seed = mixed(key)
    return python_seed, numpy_seed >> 32, torch_seed >> 1


def mixed(key: tuple[int, ...]) -> tuple[int, ...]:
    """``np.random.SeedSequence(key).generate_state(3, np.uint64)``, which takes three times as long.

    The rule is M. E. O'Neill's, and numpy has promised to keep it. Longer keys than ours go to numpy.
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
    """A word of 32 bits, hashed."""
    word = (word ^ mask[0]) * mask[1] & WORD
    return word ^ word >> 16


def hash_masks(first: int, factor: int, number: int) -> list[tuple[int, int]]:
    """What the words of a sequence are hashed with, one after the other."""
    powers = [first * pow(factor, k, WORD + 1) & WORD for k in range(number + 1)]
    return list(pairwise(powers))


PAIRS = [(source, target) for source in range(4) for target in range(4) if source != target]
POOL_MASKS = hash_masks(0x43B0D7E5, 0x931E8875, 4 + len(PAIRS))
STATE_MASKS = hash_masks(0x8B51F9DD, 0x58F38DED, 6)


def seed_generators(*key: int) -> int:
    """Seed the three global CPU generators from ``key`` (16 us); gives torch's seed.

    ``torch.manual_seed`` would take 120 us and reseed the GPUs, which no data pipeline needs.
    """
    python_seed, numpy_seed, torch_seed = sample_seeds(*key)
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(torch_seed)
    return torch_seed


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed what the model draws in a training step: drop path, dropout, mixup, MAE's masks, sampled boxes.

    Ranks draw different numbers. On a GPU its own generator is seeded too, which waits for nothing.
    """
    torch_seed = seed_generators(seed, iteration, rank, STEP)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(torch_seed)
