"""Toy models with random weights for tests of exports."""

from pathlib import Path

import torch
from mmengine.registry import MODELS

ARCH = dict(embed_dims=24, depth=3, num_heads=4)
VIT = dict(arch=ARCH, img_size=32, patch_size=8)
MMPRETRAIN = dict(
    arch=dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=96), img_size=32, patch_size=8
)
FACTS = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], img_size=[32, 32], num_heads=4)


def scramble(model: torch.nn.Module, seed: int = 0) -> dict:
    """Set every weight and buffer of a model to random values; positions that must agree stay equal."""
    generator, state = torch.Generator().manual_seed(seed), model.state_dict()
    for key, value in state.items():
        random = torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(seed + 7)
        state[key] = random.abs() + 0.5 if key.endswith('running_var') else random
    if 'feature_decoder.pos_embed' in state:
        state['feature_decoder.pos_embed'] = state['backbone.pos_embed'].clone()
    model.load_state_dict(state)
    model.eval()
    return state


def classifier(neck: dict | None = None) -> torch.nn.Module:
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmpretrain.PlainViT', out_type='avg_featmap', **VIT),
            neck=neck,
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=24),
        )
    )


def segmentor(grid: tuple[int, int] = (4, 4), **backbone) -> torch.nn.Module:
    import mmseg.models  # noqa: F401

    common = dict(num_classes=3, norm_cfg=dict(type='BN'), align_corners=False)
    vit = dict(
        type='TransferViT',
        arch=dict(embed_dims=24, depth=4, num_heads=4),
        img_size=[8 * n for n in grid],
        patch_size=8,
        relative_positions=True,
        layer_scale=1.0,
        trainable_positions=True,
        out_indices=(0, 1, 2, 3),
        pyramid=dict(type='TapPyramid', norm_cfg=dict(type='BN')),
    )
    return MODELS.build(
        dict(
            type='mmseg.EncoderDecoder',
            backbone=vit | backbone,
            decode_head=dict(
                type='mmseg.UPerHead',
                in_channels=[24] * 4,
                in_index=[0, 1, 2, 3],
                channels=8,
                pool_scales=(1, 2),
                **common,
            ),
            auxiliary_head=dict(type='mmseg.FCNHead', in_channels=24, in_index=2, channels=8, num_convs=1, **common),
        )
    )


def target(folder: Path, to: str) -> Path:
    """A file name for a format."""
    return folder / ('out.safetensors' if to in ('hf', 'safetensors') else 'out.pth')


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def same(ours: dict, theirs: dict) -> bool:
    """Whether names, types, shapes and every bit are equal."""
    return set(ours) == set(theirs) and all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours
    )
