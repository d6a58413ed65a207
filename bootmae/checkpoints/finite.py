"""Refuses weights that compute nothing: NaN, infinity, and encoders of zeros."""

from pathlib import Path

import torch

from .keys import State

SHOWN = 4  # names in a message
EARLIER = 'Use an earlier checkpoint of its run, or another file'


def is_finite(value: torch.Tensor) -> bool:
    """Whether all values of a tensor are finite as float32, the type of all our models; whole numbers always are."""
    if not value.is_floating_point():
        return True
    value = value.float()
    # A finite sum proves it without a mask of the size of the tensor. Large values may overflow the sum.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def nonfinite(state: State) -> list[str]:
    """Names of the tensors with NaN or infinity, in float32."""
    return [key for key, value in state.items() if isinstance(value, torch.Tensor) and not is_finite(value)]


def named(keys: list[str]) -> str:
    """The first names of a list, and the number of the others."""
    more = f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''
    return ', '.join(keys[:SHOWN]) + more


def check_finite(state: State, path: str | Path, what: str = 'weights') -> None:
    """Raise a ValueError if tensors hold NaN or infinity, naming them and their file.

    Only what is taken from a file is checked: the online encoder may be used if the momentum encoder is broken.

    Args:
        state: the tensors that are taken.
        path: their file, for the message.
        what: what they are, for the message.
    """
    if bad := nonfinite(state):
        kinds = ' and '.join(
            name
            for name, test in (('NaN', torch.isnan), ('infinite', lambda value: ~(value.isfinite() | value.isnan())))
            if any(bool(test(state[key].float()).any()) for key in bad)
        )
        raise ValueError(
            f'{path} has {what} that are not finite ({kinds}), {len(bad)} of {len(state)} tensors: {named(bad)}. '
            f'The training that wrote it has failed, or its values overflowed in another type. {EARLIER}'
        )


def check_encoder(state: State, path: str | Path) -> None:
    """Raise a ValueError if an encoder is not finite, or if all matrices of its blocks are zero."""
    check_finite(state, path, 'encoder weights')
    matrices = [value for key, value in state.items() if key.startswith('blocks.') and value.dim() > 1]
    if matrices and not any(bool(value.any()) for value in matrices):
        raise ValueError(f'{path} has an encoder whose {len(matrices)} weight matrices are all zero. {EARLIER}')
