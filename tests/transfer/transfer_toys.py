"""Toy settings and inputs of the downstream ViT."""

import torch

DEEP = dict(arch=dict(embed_dims=24, depth=4, num_heads=4))
TAPS = dict(out_indices=(0, 1, 2, 3), pyramid=dict(type='TapPyramid', norm_cfg=dict(type='BN')))
SEGMENTATION = DEEP | TAPS | dict(relative_positions=True, layer_scale=1.0, trainable_positions=True)
WINDOWED = DEEP | dict(relative_positions=True, window_size=3, global_blocks=(1, 3))


def images(height=32, width=32, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


def tokens(count, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 24, generator=generator, dtype=torch.float64)
