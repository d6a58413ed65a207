"""Names of ViTDet's backbone in detectron2: ``net.*`` is the ViT and ``simfp_*`` the simple feature pyramid."""

import re

from .keys import State, from_timm

# Index of the first of the two convolutions of a level in detectron2, by the scale of the level. There the norm is part
# of the convolution; in our pyramid it is the next module.
_CONVOLUTION = {4: 4, 2: 1, 1: 0, 0.5: 1}
_SCALES = tuple(_CONVOLUTION)


def from_detectron2(state: State) -> State:
    """Rename detectron2's ViTDet backbone (``net.*``, ``simfp_*``) to ``TransferViT`` with a ``SimplePyramid``.

    Raises:
        ValueError: for any other name.
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
            raise ValueError(f"{key} is not a weight of ViTDet's backbone (net.*, simfp_*)")
    return from_timm(out)


def _place(scale: float, index: int, name: str) -> str:
    """Our name of a weight in a level, from its module's index and name in detectron2."""
    first = _CONVOLUTION[scale]
    if index >= first:
        index = first + 2 * (index - first) + name.startswith('norm.')
    elif (scale, index) == (4, 1):
        name = f'norm.{name}'
    return f'{index}.{name}'
