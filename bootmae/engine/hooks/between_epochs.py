"""Helpers of the hooks that look at the model between epochs."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


def is_due(hook: Hook, runner: Runner) -> bool:
    """Whether a hook with an ``interval`` acts after the current epoch. After the last epoch it always does."""
    return hook.every_n_epochs(runner, hook.interval) or hook.is_last_train_epoch(runner)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random state of Python, NumPy, torch and the current GPU at the end of the block."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
