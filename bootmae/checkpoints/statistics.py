"""Input statistics of an encoder, folded into its patch embedding."""

from collections.abc import Sequence

import numpy as np
import torch

from ..text import count_of
from .keys import State

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel, of 0..255
WEIGHT, BIAS = 'patch_embed.proj.weight', 'patch_embed.proj.bias'


def statistics_text(statistics: Statistics) -> str:
    """Statistics for a message, such as ``mean [127.5], std [127.5]``."""
    mean, std = ([round(float(value), 3) for value in values] for values in statistics)
    return f'mean {mean}, std {std}'


def same_statistics(ours: Statistics, theirs: Statistics) -> bool:
    """Whether mean and standard deviation agree, but for rounding."""
    return np.shape(ours) == np.shape(theirs) and np.allclose(ours, theirs, atol=0.01)


def as_float(weight: torch.Tensor) -> torch.Tensor:
    """A weight in float32 or better, so that a change of it is not rounded to the half precision of its file."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def convert_statistics(state: State, old: Statistics, new: Statistics) -> State:
    """Change a patch embedding so that images normalized in a new way give the tokens that they gave before.

    A pixel ``p`` enters as ``x = (p - mean) / std``. So ``x_old = x_new * std_new / std_old + (mean_new - mean_old) /
    std_old``, which is linear in each channel: the factor goes into the weights, and the rest into the bias. Computed
    in float64.

    Args:
        state: weights of an encoder under our names.
        old: mean and standard deviation of the images that the weights were trained on.
        new: those of the images that they will get.

    Raises:
        ValueError: if the numbers of channels differ.
    """
    weight, bias = as_float(state[WEIGHT]), as_float(state[BIAS])
    (old_mean, old_std), (new_mean, new_std) = (
        tuple(torch.as_tensor(list(values), dtype=torch.float64) for values in pair) for pair in (old, new)
    )
    channels = {len(old_mean), len(old_std), len(new_mean), len(new_std), weight.shape[1]}
    if len(channels) > 1:
        raise ValueError(
            f'its patch embedding has {count_of(weight.shape[1], "channel")}, and the input statistics have '
            f'{len(old_mean)} (file) and {len(new_mean)} (config)'
        )
    exact = weight.double()
    factor, shift = new_std / old_std, (new_mean - old_mean) / old_std
    return state | {
        WEIGHT: (exact * factor.view(1, -1, 1, 1)).to(weight.dtype),
        BIAS: (bias.double() + (exact.sum(dim=(2, 3)) * shift).sum(dim=1)).to(bias.dtype),
    }
