"""Names of ViTDet's backbone in detectron2: ``net.*``, the ViT, and ``simfp_*``, the simple feature pyramid."""

import re

from .keys import State, from_timm

# Of a level, by its scale: where the first of its two convolutions stands there. Each has its norm within it there, and
# behind it here.
_CONVOLUTION = {4: 4, 2: 1, 1: 0, 0.5: 1}
_SCALES = tuple(_CONVOLUTION)


def from_detectron2(state: State) -> State:
    """detectron2's ViTDet backbone (``net.*``, ``simfp_*``) as our ``TransferViT`` with a ``SimplePyramid``.

    Raises:
        ValueError: for a name that is neither.
    """
    strides = sorted({int(match[1]) for key in state if (match := re.match(r'simfp_(\d+)\.', key))})
    out = {}
    for key, value in state.items():
        match = re.fullmatch(r'simfp_(\d+)\.(\d+)\.(.+)', key)
        if key.startswith('net.'):
            out[key.removeprefix('net.')] = value
        elif match and strides.index(int(match[1])) < len(_SCALES):
            level = strides.index(int(match[1]))
            out[f'pyramid.levels.{level}.{_place(_SCALES[level], int(match[2]), match[3])}'] = value
        else:
            raise ValueError(f"{key} is no part of ViTDet's backbone (net.*, simfp_*)")
    return from_timm(out)


def _place(scale: float, index: int, name: str) -> str:
    """A weight within a level: a module's index and its weight, theirs -> ours."""
    first = _CONVOLUTION[scale]
    if index >= first:
        index = first + 2 * (index - first) + name.startswith('norm.')
    elif (scale, index) == (4, 1):
        name = f'norm.{name}'
    return f'{index}.{name}'
