"""Helpers of hooks between epochs."""

import random

import numpy as np
import torch

from bootmae.engine.hooks.between_epochs import evenly_spaced, kept_random_state


def test_evenly_spaced():
    """All classes of a list in their order keep their share, and no image comes twice."""
    assert evenly_spaced(5, None).tolist() == evenly_spaced(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(10, 3).tolist() == [0, 3, 6]
    many = evenly_spaced(1_281_167, 50_000)
    assert len(set(many.tolist())) == 50_000
    assert many[-1] > 1_281_167 - 30


def test_random_state_is_kept():
    def draw() -> list:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with kept_random_state():
        draw(), np.random.seed(5), torch.manual_seed(7)
    assert draw() == expected
