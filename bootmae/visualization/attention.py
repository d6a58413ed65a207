"""Attention of the class token, and principal components of patch features.

Shape letters: B images, C channels, T tokens, H heads, D width, h and w rows and columns of patches.
"""

import torch
from torch import nn

from ..models.layers import SelfAttention, TokenGroup, split_heads
from ..models.vit import patch_grid
from ..transfer import TransferViT


def attention_rows(attn: SelfAttention, x: torch.Tensor, group: TokenGroup | None, query: int = 0) -> torch.Tensor:
    """Return the attention weights of one query over all tokens: (B, T, D) -> (B, H, T). They sum to one."""
    q_weight, k_weight, _ = attn.qkv.weight.chunk(3)
    q = split_heads(nn.functional.linear(x[:, query : query + 1], q_weight, attn.q_bias), attn.num_heads)
    k = split_heads(nn.functional.linear(x, k_weight), attn.num_heads)
    logits = q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5  # B, H, 1, T
    bias = attn.position_bias(group) if group else None
    if bias is not None:
        logits = logits + bias[:, query : query + 1]
    return logits[:, :, 0].softmax(dim=-1)


@torch.no_grad()
def class_attention(model: TransferViT, images: torch.Tensor) -> torch.Tensor:
    """Return the attention of the class token to the patches in a model's last block.

    Maps sum to less than one, since the class token also attends to itself.

    Args:
        model: A model of :func:`bootmae.config.encoder.fit_encoder`.
        images: (B, C, height, width).

    Returns:
        (B, H, h, w).

    Raises:
        ValueError: If the model has no class token, or that block attends within windows, where it sees no patch.
    """
    if model.cls_token is None:
        raise ValueError('this encoder has no class token (ViTDet), so there is no attention to draw: use --what pca')
    if model.windowed[-1]:
        raise ValueError(
            f'block {model.depth - 1} attends within windows, where the class token sees no patch: '
            f'choose --block from {[k for k, within in enumerate(model.windowed) if not within]}'
        )
    grid, kept = patch_grid(tuple(images.shape[-2:]), model.patch_size), []
    hook = model.blocks[-1].attn.register_forward_pre_hook(lambda _, args: kept.append(args))
    try:
        model(images)
    finally:
        hook.remove()
    x, _, groups = kept[0]
    rows = attention_rows(model.blocks[-1].attn, x, groups[0] if groups else None)
    order = model.groups(grid, images.device)[1]
    if order is not None:
        rows = rows[..., order.argsort()]
    return rows[..., 1:].unflatten(-1, grid)


@torch.no_grad()
def patch_features(model: TransferViT, images: torch.Tensor) -> torch.Tensor:
    """Return the output of the last block without final norm: (B, C, height, width) -> (B, D, h, w)."""
    return model(images)[-1]


def principal_components(features: torch.Tensor, number: int = 3) -> tuple[torch.Tensor, list[float]]:
    """Project the patches of all images onto their principal components.

    The arbitrary sign of a component is chosen so that its largest weight is positive.

    Args:
        features: (B, D, h, w).
        number: Number of components.

    Returns:
        Projections (B, h, w, number), and the share of variance of each component. Missing components are zero.
    """
    grid, flat = features.shape[2:], features.double().flatten(2).transpose(1, 2).flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    _, values, directions = torch.linalg.svd(flat, full_matrices=False)
    values, directions = values[:number], directions[:number]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    projected = nn.functional.pad(flat @ (directions * largest.sign()).T, (0, number - len(values)))
    total = flat.square().sum().item() or 1.0
    shares = [value**2 / total for value in values.tolist()] + [0.0] * (number - len(values))
    return projected.unflatten(0, (len(features), *grid)), shares
