"""Schedules of BootMAE by epoch: EMA decay and feature weight (docs/method.md, sections 4 and 5)."""

from collections.abc import Sequence

import numpy as np

EMA_BASE = ((0, 0.999), (100, 0.9999), (400, 0.99999))
EMA_LARGE = ((0, 0.999), (100, 0.9999))


def ema_decay(epoch: int, points: Sequence[tuple[float, float]] = EMA_BASE) -> float:
    """EMA decay of the momentum encoder in an epoch: linear between (epoch, decay) points, constant outside them."""
    epochs, decays = zip(*points, strict=True)
    return float(np.interp(epoch, epochs, decays))


def feature_weight(epoch: int, total_epochs: int, ramp: float = 0.25) -> float:
    """Weight f of the feature loss in an epoch; it rises linearly to 1 over the first ``ramp`` of all epochs."""
    return min((epoch + 1) / (ramp * total_epochs), 1.0)
