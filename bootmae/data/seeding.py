"""Random numbers that depend on (seed, epoch, sample) or on (seed, iteration, rank), and on nothing else.

With ordinary seeding the crop of an image depends on which process and worker happens to load it, and on how much each
has drawn before. A run on 2 GPUs then differs from a run on 1, and a resumed run from an unbroken one. Here every
sample and every training step starts from a seed of its own instead, so no generator's state needs to be saved.
"""

import random

import numpy as np
import torch

STEP = 1  # last number of a step's key, which so never equals a sample's


def sample_seeds(*key: int) -> tuple[int, int, int]:
    """Mix non-negative integers into seeds for ``random``, ``numpy.random`` and ``torch``.

    ``numpy.random.seed`` takes 32 bits, so some of 10^9 visits share numpy's stream. That does no harm.
    """
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(key).generate_state(3, np.uint64).tolist()
    return python_seed, numpy_seed >> 32, torch_seed >> 1


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
