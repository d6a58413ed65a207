"""Attention of the class token, and principal components of patch features.

Shape letters: B images, C channels, T tokens, H heads, D width, h and w rows and columns of patches.
"""

import re

import torch
from torch import nn

from ..checkpoints import Encoder, match
from ..models.layers import SelfAttention, TokenGroup, split_heads
from ..models.positions import bias_table_size
from ..models.vit import ARCHS, patch_grid
from ..text import count_of
from ..transfer import TransferViT

HUGE = dict(embed_dims=1280, depth=32, num_heads=16)
HEAD_WIDTH = 64  # of all common ViTs except ViT-H


def heads_of(encoder: Encoder, num_heads: int | None = None) -> int:
    """Return the number of attention heads: recorded in the file, given, or that of the common ViT of this width.

    Raises:
        ValueError: If the number is unknown, or differs between the file and the argument.
    """
    if None not in (encoder.num_heads, num_heads) and encoder.num_heads != num_heads:
        raise ValueError(
            f'--heads {num_heads}, but the file records {count_of(encoder.num_heads, "head")}: leave --heads out'
        )
    if encoder.num_heads or num_heads:
        return encoder.num_heads or num_heads
    width = encoder.state['pos_embed'].shape[-1]
    for arch in (*ARCHS.values(), HUGE):
        if (arch['embed_dims'], arch['depth']) == (width, encoder.depth):
            return arch['num_heads']
    if width % HEAD_WIDTH:
        raise ValueError(
            f'the file does not record the number of attention heads, and a width of {width} is unusual: give --heads'
        )
    return width // HEAD_WIDTH


def fit_encoder(
    encoder: Encoder,
    img_size: tuple[int, int],
    block: int | None = None,
    num_heads: int | None = None,
    windows: dict | None = None,
) -> TransferViT:
    """Build the encoder of a file up to one block, in eval mode.

    Args:
        encoder: Result of :func:`find_encoder` for a file of any project.
        img_size: Height and width of the images. Position embeddings are interpolated.
        block: Last block, counted from 0, or from the end if negative. By default the last block of the encoder.
        num_heads: Number of heads for files that do not record it, see :func:`heads_of`.
        windows: ``window_size`` and ``global_blocks`` of :class:`TransferViT`, which no file records.

    Raises:
        ValueError: If there is no such block, or the encoder is no plain ViT.
    """
    state = encoder.state
    last = encoder.depth - 1 if block is None else block + encoder.depth * (block < 0)
    if not 0 <= last < encoder.depth:
        raise ValueError(f'--block {block}: the encoder has the blocks 0 to {encoder.depth - 1}')
    width, channels, *patch = (*state['patch_embed.proj.weight'].shape,)
    hidden = state['blocks.0.mlp.fc1.weight'].shape[0] if 'blocks.0.mlp.fc1.weight' in state else 4 * width
    arch = dict(embed_dims=width, depth=encoder.depth, num_heads=heads_of(encoder, num_heads), mlp_ratio=hidden / width)
    tables = [value for key, value in state.items() if key.endswith('relative_position_bias_table')]
    shared = dict(
        patch_size=tuple(patch),
        in_channels=channels,
        arch=arch,
        depth=last + 1,
        relative_positions=bool(tables),
        layer_scale=1.0 if any(re.search(r'\.gamma_1$', key) for key in state) else None,
    )
    shared |= window_options(encoder, last, windows or {})
    model = TransferViT(img_size=img_size, **shared)
    found = match(model, encoder)
    model.load_state_dict(found.state, strict=False)
    return model.requires_grad_(False).eval()


def window_options(encoder: Encoder, last: int, windows: dict) -> dict:
    """Return the window arguments of :class:`TransferViT` for a model that ends with block ``last``.

    Raises:
        ValueError: If the windows of the encoder are unknown, or all of these blocks attend within windows.
    """
    if not windows.get('window_size'):
        tables = [value for key, value in encoder.state.items() if key.endswith('relative_position_bias_table')]
        if encoder.grid and any(len(table) < bias_table_size(encoder.grid) for table in tables):
            raise ValueError(
                'the encoder attends within windows, and the file does not record their size: give its config, --config'
            )
        return {}
    blocks = windows.get('global_blocks') or [quarter * encoder.depth // 4 - 1 for quarter in range(1, 5)]
    seen = [index + encoder.depth * (index < 0) for index in blocks]
    if not (kept := [index for index in seen if index <= last]):
        raise ValueError(f'all blocks up to {last} attend within windows: choose --block from {seen}')
    return dict(window_size=windows['window_size'], global_blocks=kept)


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
        model: A model of :func:`fit_encoder`.
        images: (B, C, height, width).

    Returns:
        (B, H, h, w).

    Raises:
        ValueError: If that block attends within windows, where the class token sees no patch.
    """
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
