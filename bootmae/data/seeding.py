"""Random numbers that depend on (seed, epoch, sample) or on (seed, iteration, rank) alone.

With ordinary seeding, the crop of an image depends on the process and the worker that load it, and on what they have
drawn before. A run on 2 GPUs then differs from a run on 1, and a resumed run from an uninterrupted one. This module
seeds every sample and every training step separately, so no state of a generator needs to be saved.
"""

import random

import numpy as np
import torch

STEP = 1  # last number of a step's key, so that it never equals the key of a sample


def sample_seeds(*key: int) -> tuple[int, int, int]:
    """Mix non-negative integers into seeds for ``random``, ``numpy.random`` and ``torch``.

    ``numpy.random.seed`` takes 32 bits, so among 10^9 samples some share a stream of numpy. That does no harm.
    """
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(key).generate_state(3, np.uint64).tolist()
    return python_seed, numpy_seed >> 32, torch_seed >> 1


def seed_generators(*key: int) -> int:
    """Seed the three global CPU generators from ``key`` and return the seed of torch.

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
