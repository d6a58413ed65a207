"""Toy encoders of other projects, and what ours computes with their weights."""

import torch
from timm.models.vision_transformer import VisionTransformer

MMPRETRAIN_ARCH = dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=96)
SIZES = dict(img_size=32, patch_size=8)


def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def features(make_vit, encoder, out_type='raw', **kwargs):
    """What our encoder computes with the weights that were found."""
    model = make_vit(out_type=out_type, **kwargs)
    model.load_state_dict(encoder.state)
    return model(image())[0]


def double(model):
    model.double().eval()  # mmpretrain's eval() gives None
    return model


def timm_model(randomize, **kwargs):
    return double(randomize(VisionTransformer(embed_dim=24, depth=3, num_heads=4, num_classes=5, **SIZES, **kwargs)))
