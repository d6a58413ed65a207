"""What a checkpoint is, and its encoder under our names."""

import math
import re
from dataclasses import dataclass

import torch

from .keys import State, authors_key, from_authors_segmentation, from_mmpretrain, from_timm

HALF = (127.5, 127.5, 127.5)  # BootMAE: [0, 1] images with mean = std = 0.5
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass
class Encoder:
    """The encoder found in a file.

    ``state`` has the names of :class:`bootmae.models.PlainViT`; ``mean`` and ``std`` are those of the input (of
    0..255, RGB) that the weights were made with, and ``img_size`` their (height, width); None where the file does not
    tell.
    """

    kind: str
    state: State
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    img_size: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches that the positions are for: as recorded, else a square, else unknown."""
        patches = self.state['pos_embed'].shape[1] - 1
        if self.img_size:
            height, width = self.state['patch_embed.proj.weight'].shape[2:]
            return self.img_size[0] // height, self.img_size[1] // width
        side = math.isqrt(patches)
        return (side, side) if side * side == patches else None

    @property
    def depth(self) -> int:
        return 1 + max((int(m[1]) for key in self.state if (m := re.match(r'blocks\.(\d+)\.', key))), default=-1)


def weights_of(content: dict) -> State:
    """The weights in a file: under ``state_dict``, ``model`` or ``module``, or the file itself."""
    for key in ('state_dict', 'model', 'module'):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if state and all(key.startswith('module.') for key in state):
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    return state


def under(state: State, prefix: str) -> State:
    """The part of a state below a prefix, prefix removed."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def has(state: State, *prefixes: str) -> bool:
    """Whether the state has a weight below each prefix."""
    return all(any(key.startswith(prefix) for key in state) for prefix in prefixes)


def find_encoder(content: dict, source: str = 'online') -> Encoder:
    """Decide what a file is and take its encoder.

    Args:
        content: of :func:`read_checkpoint`.
        source: ``online`` or ``momentum`` encoder, where a file has both.

    Raises:
        ValueError: if no known encoder is in the file, or no momentum encoder though asked for.
    """
    if source not in ('online', 'momentum'):
        raise ValueError(f'source={source!r}: use online or momentum')
    encoder = _find(content, source)
    recorded = content.get('meta', {}).get('bootmae', {}) if isinstance(content.get('meta'), dict) else {}
    if recorded:
        encoder.mean, encoder.std = tuple(recorded['mean']), tuple(recorded['std'])
        encoder.img_size = tuple(recorded['img_size']) if 'img_size' in recorded else None
    return encoder


def _find(content: dict, source: str) -> Encoder:
    state = weights_of(content)
    if has(state, 'backbone.blocks.', 'momentum.', 'pixel_decoder.'):
        prefix = 'momentum.' if source == 'momentum' else 'backbone.'
        return Encoder(f'BootMAE run ({source})', under(state, prefix), HALF, HALF)
    if has(state, 'decode_blocks.', 'decode_blocks_1.'):
        if source == 'momentum':
            state = weights_of({'model': content.get('model_ema')})
            if not state:
                raise ValueError('no momentum encoder (model_ema) in this file of the authors: use source=online')
        encoder = {key: value for key, value in state.items() if (authors_key(key) or '').startswith('backbone.')}
        return Encoder(f'authors\' BootMAE ({source})', encoder, HALF, HALF)
    if source == 'momentum':
        raise ValueError('no momentum encoder in this file: only BootMAE pretraining files have one')
    if has(state, 'backbone.layers.', 'neck.decoder_blocks.'):
        return Encoder('mmpretrain MAE', from_mmpretrain(under(state, 'backbone.')), IMAGENET_MEAN, IMAGENET_STD)
    if has(state, 'backbone.layers.'):
        return Encoder('mmpretrain ViT', from_mmpretrain(under(state, 'backbone.')))
    if has(state, 'backbone.fpn1.', 'backbone.blocks.0.attn.relative_position_index'):
        encoder = under(from_authors_segmentation(state), 'backbone.')
        return Encoder('authors\' BootMAE segmentation', encoder, HALF, HALF)
    if has(state, 'backbone.blocks.'):
        return Encoder('run of this suite', under(state, 'backbone.'))
    if has(state, 'blocks.0.attn.q_bias'):
        encoder = {key: value for key, value in state.items() if not key.startswith('head.')}
        return Encoder('authors\' fine-tuned BootMAE', encoder, HALF, HALF)
    if has(state, 'blocks.', 'decoder_blocks.'):
        dropped = ('decoder_', 'mask_token')
        encoder = {key: value for key, value in state.items() if not key.startswith(dropped)}
        return Encoder('facebookresearch MAE', from_timm(encoder), IMAGENET_MEAN, IMAGENET_STD)
    if has(state, 'blocks.0.attn.qkv.bias'):
        encoder = {key: value for key, value in state.items() if not key.startswith('head.')}
        return Encoder('timm ViT', from_timm(encoder))
    raise ValueError(f'no ViT encoder in this file: its weights are named {sorted(state)[:4] or "not at all"} ...')
