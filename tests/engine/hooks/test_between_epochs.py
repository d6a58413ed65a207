"""Helpers of hooks between epochs."""

import random

import numpy as np
import torch

from bootmae.engine.hooks.between_epochs import kept_random_state


def test_random_state_is_kept():
    def draw() -> list:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with kept_random_state():
        draw(), np.random.seed(5), torch.manual_seed(7)
    assert draw() == expected
