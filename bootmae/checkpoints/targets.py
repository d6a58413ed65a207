"""Proves that an export fits its target: its own class takes all weights strictly, or their list is compared.

mmdetection's ViTDet is a project outside of the package, and transformers is no requirement, so these two are lists of
names and shapes.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from .identify import FileEncoder
from .keys import State

Shapes = dict[str, tuple[int, ...]]
EPS = 1e-6


class Sizes:
    """Sizes of a plain ViT, from its weights under our names."""

    def __init__(self, encoder: FileEncoder, to: str):
        state = encoder.state
        self.width, self.channels, *patch = state['patch_embed.proj.weight'].shape
        self.patch = patch[0], patch[1]
        self.hidden, self.depth = state['blocks.0.mlp.fc1.weight'].shape[0], encoder.depth
        patches = state['pos_embed'].shape[1] - 1
        self.grid = encoder.grid or (1, patches)  # a grid that is not recorded: the class only sees the number
        if self.grid[0] * self.grid[1] != patches:
            raise ValueError(
                f'its pos_embed has {patches + 1} rows, but {self.grid[0]}x{self.grid[1]} patches and a class token '
                f'have {self.grid[0] * self.grid[1] + 1}; {to} has no place for other positions'
            )
        self.size = self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]
        self.heads = encoder.num_heads or 1  # no name and no shape depends on it
        if self.width % self.heads:
            raise ValueError(f'{self.heads} heads do not divide the width of {self.width}, as {to} needs it')


def check_fits(to: str, encoder: FileEncoder, weights: State) -> None:
    """Raise a ValueError unless the target's model has exactly the exported weights.

    Args:
        to: the format.
        encoder: the exported encoder under our names.
        weights: the export, under the names of the format and without the prefix ``backbone.``.
    """
    sizes = Sizes(encoder, to)
    if to in LISTS:
        compare(to, {key: tuple(value.shape) for key, value in weights.items()}, LISTS[to](sizes))
        return
    package, make = CLASSES[to]
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ValueError(f'{to} is not installed, and its model must prove that it takes the weights') from None
    with torch.device('meta' if to != 'mmseg' else 'cpu'):  # mmseg computes with values in its constructor
        model = make(module, sizes, weights)
    compare(
        to,
        {key: tuple(value.shape) for key, value in weights.items()},
        {key: tuple(value.shape) for key, value in model.state_dict().items()},
    )
    model.load_state_dict(weights, strict=True, assign=True)


def compare(to: str, ours: Shapes, theirs: Shapes) -> None:
    """Raise a ValueError if names or shapes differ."""
    missing, unknown = [key for key in theirs if key not in ours], [key for key in ours if key not in theirs]
    shapes = [f'{key} {ours[key]} for {theirs[key]}' for key in theirs if key in ours and ours[key] != theirs[key]]
    faults = [
        f'{len(keys)} {what}: {", ".join(keys[:3])}'
        for what, keys in (('without a place', unknown), ('missing', missing), ('of another shape', shapes))
        if keys
    ]
    if faults:
        raise ValueError(f'the model of {to} would not take these weights completely ({"; ".join(faults)})')


def _timm(timm: ModuleType, sizes: Sizes, weights: State) -> nn.Module:
    pooled = 'fc_norm.weight' in weights
    return timm.VisionTransformer(
        img_size=sizes.size,
        patch_size=sizes.patch,
        in_chans=sizes.channels,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.hidden / sizes.width,
        num_classes=len(weights['head.weight']) if 'head.weight' in weights else 0,
        global_pool='avg',
        fc_norm=pooled,
        final_norm=pooled or 'norm.weight' in weights,
    )


def _mmpretrain(mmpretrain: ModuleType, sizes: Sizes, weights: State) -> nn.Module:
    return mmpretrain.VisionTransformer(
        arch=dict(
            embed_dims=sizes.width, num_layers=sizes.depth, num_heads=sizes.heads, feedforward_channels=sizes.hidden
        ),
        img_size=sizes.size,
        patch_size=sizes.patch,
        in_channels=sizes.channels,
        out_type='avg_featmap' if 'ln2.weight' in weights else 'raw',
        final_norm='ln1.weight' in weights,
    )


def _mmseg(mmseg: ModuleType, sizes: Sizes, weights: State) -> nn.Module:
    if sizes.patch[0] != sizes.patch[1] or sizes.hidden % sizes.width:
        raise ValueError("mmseg's ViT takes square patches and a whole mlp_ratio, and this encoder has others")
    return mmseg.VisionTransformer(
        img_size=sizes.size,
        patch_size=sizes.patch[0],
        in_channels=sizes.channels,
        embed_dims=sizes.width,
        num_layers=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.hidden // sizes.width,
        patch_bias=True,
        final_norm='ln1.weight' in weights,
        norm_cfg=dict(type='LN', eps=EPS),
    )


CLASSES: dict[str, tuple[str, Callable]] = dict(
    timm=('timm.models.vision_transformer', _timm),
    mmpretrain=('mmpretrain.models.backbones', _mmpretrain),
    mmseg=('mmseg.models.backbones', _mmseg),
)


def linear(name: str, width_out: int, width_in: int) -> Shapes:
    return {f'{name}.weight': (width_out, width_in), f'{name}.bias': (width_out,)}


def norm(name: str, width: int) -> Shapes:
    return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def _embedding(sizes: Sizes, positions: str, projection: str) -> Shapes:
    return {
        positions: (1, 1 + sizes.grid[0] * sizes.grid[1], sizes.width),
        f'{projection}.weight': (sizes.width, sizes.channels, *sizes.patch),
        f'{projection}.bias': (sizes.width,),
    }


def _hf(sizes: Sizes) -> Shapes:
    """All weights of transformers' ``ViTModel(config, add_pooling_layer=False)``."""
    width, hidden = sizes.width, sizes.hidden
    shapes: Shapes = {'embeddings.cls_token': (1, 1, width)}
    shapes |= _embedding(sizes, 'embeddings.position_embeddings', 'embeddings.patch_embeddings.projection')
    for index in range(sizes.depth):
        block = f'encoder.layer.{index}'
        for part in ('query', 'key', 'value'):
            shapes |= linear(f'{block}.attention.attention.{part}', width, width)
        shapes |= linear(f'{block}.attention.output.dense', width, width)
        shapes |= linear(f'{block}.intermediate.dense', hidden, width) | linear(f'{block}.output.dense', width, hidden)
        shapes |= norm(f'{block}.layernorm_before', width) | norm(f'{block}.layernorm_after', width)
    return shapes | norm('layernorm', width)


def _mmdet(sizes: Sizes) -> Shapes:
    """All weights of ``ViT`` in mmdetection's projects/ViTDet but its relative positions, which are new."""
    width, hidden = sizes.width, sizes.hidden
    if sizes.grid[0] != sizes.grid[1] or sizes.patch[0] != sizes.patch[1]:
        raise ValueError(
            "mmdet's ViTDet takes square patches in a square, and the positions of this encoder are others"
        )
    shapes = _embedding(sizes, 'pos_embed', 'patch_embed.proj')
    for index in range(sizes.depth):
        block = f'blocks.{index}'
        shapes |= linear(f'{block}.attn.qkv', 3 * width, width) | linear(f'{block}.attn.proj', width, width)
        shapes |= linear(f'{block}.mlp.fc1', hidden, width) | linear(f'{block}.mlp.fc2', width, hidden)
        shapes |= norm(f'{block}.norm1', width) | norm(f'{block}.norm2', width)
    return shapes


LISTS: dict[str, Callable[[Sizes], Shapes]] = dict(hf=_hf, mmdet=_mmdet)
