"""The one ViT of the suite: online encoder, momentum encoder and downstream backbone.

Shape letters: B batch, N patches, T tokens, P pixels of a patch (C * height * width), D width.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.model import BaseModule
from mmengine.utils import to_2tuple
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..text import count_of
from .init import init_transformer_weights
from .layers import Block, PatchEmbed, Tiling, TokenGroup, layer_norm
from .positions import sincos_positions

ARCHS = {
    'tiny': dict(embed_dims=192, depth=12, num_heads=3),
    'small': dict(embed_dims=384, depth=12, num_heads=6),
    'base': dict(embed_dims=768, depth=12, num_heads=12),
    'large': dict(embed_dims=1024, depth=24, num_heads=16),
}
OUT_TYPES = ('raw', 'featmap', 'avg_featmap', 'cls_token')


def resolve_arch(arch: str | dict) -> dict:
    """Expand a named size, or a dict with ``embed_dims``, ``depth``, ``num_heads`` and maybe ``mlp_ratio``."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'unknown ViT size {arch!r}: use one of {", ".join(ARCHS)}, or a dict '
                'with embed_dims, depth and num_heads'
            )
        arch = ARCHS[arch]
    missing = {'embed_dims', 'depth', 'num_heads'} - set(arch)
    unknown = set(arch) - {'embed_dims', 'depth', 'num_heads', 'mlp_ratio'}
    if missing or unknown:
        raise ValueError(f'ViT size {arch}: missing {sorted(missing)}, unknown {sorted(unknown)}')
    return dict(mlp_ratio=4.0) | dict(arch)


def patch_grid(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in an image, sizes as (height, width)."""
    if img_size[0] % patch_size[0] or img_size[1] % patch_size[1]:
        raise ValueError(
            f'image size {img_size} is not a multiple of the patch size {patch_size}: crop or resize to a multiple'
        )
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]


@MODELS.register_module()
class PlainViT(BaseModule):
    """Plain vision transformer of BootMAE (docs/method.md, section 2). It also takes MAE and timm weights.

    Args:
        arch: ``tiny``, ``small``, ``base``, ``large`` or ``dict(embed_dims=, depth=, num_heads=[, mlp_ratio=])``.
        img_size: image size in pixels, a number or (height, width).
        patch_size: patch size in pixels, a number or (height, width).
        depth: number of blocks, if smaller than the arch's: a linear probe may read an inner block.
        in_channels: number of image channels.
        drop_path_rate: drop-path rate of the last block; it rises linearly from 0 in the first.
        out_type: output of ``forward``: ``raw`` (B, 1 + N, D), ``featmap`` (B, D, rows, columns), ``cls_token`` (B, D),
            or ``avg_featmap`` (B, D), the mean of the patch tokens followed by its own LayerNorm (``fc_norm``).
        final_norm: apply a LayerNorm after the last block. ``avg_featmap`` has none.
        trainable_positions: train the absolute position embedding, as in MAE's fine-tuning. BootMAE keeps it fixed.
        frozen: keep all weights fixed and the module in eval mode (linear probing).
        with_cp: recompute the blocks in the backward pass, which saves memory and costs time.
        block_options: further arguments of each :class:`Block`, one dict per block, for subclasses.
        init_cfg: mmengine's initialization config.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        depth: int | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_type: str = 'raw',
        final_norm: bool = True,
        trainable_positions: bool = False,
        frozen: bool = False,
        with_cp: bool = False,
        block_options: Sequence[dict] | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type {out_type!r}: use one of {", ".join(OUT_TYPES)}')
        arch = resolve_arch(arch)
        self.img_size, self.patch_size = tuple(to_2tuple(img_size)), tuple(to_2tuple(patch_size))
        self.grid = patch_grid(self.img_size, self.patch_size)
        self.embed_dims, self.num_heads, self.out_type = arch['embed_dims'], arch['num_heads'], out_type
        self.arch_depth = arch['depth']
        self.depth = arch['depth'] if depth is None else depth
        if not 1 <= self.depth <= self.arch_depth:
            raise ValueError(
                f'depth={depth}: {arch} has {count_of(self.arch_depth, "block")}, use 1..{self.arch_depth}'
            )
        self.patch_embed = PatchEmbed(self.patch_size, in_channels, self.embed_dims)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, self.embed_dims), requires_grad=trainable_positions)
        rates = np.linspace(0, drop_path_rate, self.depth).tolist()
        self.blocks = nn.ModuleList(
            Block(self.embed_dims, self.num_heads, arch['mlp_ratio'], rate, **options)
            for rate, options in zip(rates, block_options or [{}] * self.depth, strict=True)
        )
        pooled = out_type == 'avg_featmap'
        self.norm = layer_norm(self.embed_dims) if final_norm and not pooled else nn.Identity()
        self.fc_norm = layer_norm(self.embed_dims) if pooled else nn.Identity()
        self.with_cp = with_cp
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)

    def init_weights(self) -> None:
        if not self.is_init:  # mmengine loads init_cfg only once, so a second draw would discard it
            for part in (self.patch_embed, self.blocks, self.norm, self.fc_norm):
                init_transformer_weights(part)
            if self.cls_token is not None:
                nn.init.normal_(self.cls_token, std=1e-6)
        super().init_weights()

    def train(self, mode: bool = True) -> 'PlainViT':
        return super().train(mode and not self.frozen)

    @property
    def new_parts(self) -> dict[str, list[str]]:
        """Parts that a downstream model adds to a pretrained encoder, with the names of their tensors.

        If a checkpoint has no tensor of such a part, the part keeps its initial weights.
        """
        return self.find_parts({'fc_norm': r'fc_norm\.'})

    def find_parts(self, patterns: dict[str, str]) -> dict[str, list[str]]:
        """Names of the tensors of each part, given a pattern for the beginning of the names, without empty parts."""
        parts = {
            part: [key for key in self.state_dict() if re.match(pattern, key)] for part, pattern in patterns.items()
        }
        return {part: keys for part, keys in parts.items() if keys}

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Grid (rows, columns) of each tensor of absolute or relative positions."""
        tables = {
            f'blocks.{index}.attn.relative_position_bias_table': block.attn.bias_grid
            for index, block in enumerate(self.blocks)
            if block.attn.bias_grid
        }
        offsets = {
            f'blocks.{index}.attn.rel_pos_{axis}': block.attn.offset_grid
            for index, block in enumerate(self.blocks)
            if block.attn.offset_grid
            for axis in 'hw'
        }
        return {'pos_embed': self.grid} | tables | offsets

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def check_images(self, images: torch.Tensor) -> None:
        """Raise a ValueError if the images do not have the size that the model was built for."""
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(
                f'images of {tuple(images.shape[-2:])} pixels given to a ViT built with '
                f'img_size={self.img_size}: set img_size in the config, or crop the images'
            )

    def embed(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embed patches, add their positions, and prepend the class token if the model has one.

        Args:
            patches: (B, T, P), any subset of an image's patches.
            positions: (B or 1, T, D) position embeddings of these patches.

        Returns:
            (B, 1 + T, D), or (B, T, D) without class token.
        """
        tokens = self.patch_embed(patches) + positions
        if self.cls_token is None:
            return tokens
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat((class_token, tokens), dim=1)

    def forward_blocks(
        self,
        x: torch.Tensor,
        taps: Sequence[int] = (),
        num_queries: int | None = None,
        groups: Sequence[list[TokenGroup] | Tiling | None] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Apply all blocks, without the final norm.

        Args:
            x: (B, T, D).
            taps: indices of blocks whose outputs are returned as well.
            num_queries: the last block computes only the last ``num_queries`` tokens. It must then not be a tap.
            groups: which tokens attend to which in each block (:class:`TokenGroup`, :class:`Tiling`). Default: all to
                all.

        Returns:
            The output of the last block, and the outputs of the taps in their order.
        """
        outputs = {}
        recompute = self.with_cp and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            args = x, num_queries if index == self.depth - 1 else None, groups and groups[index]
            x = checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)
            if index in taps:
                outputs[index] = x
        return x, [outputs[index] for index in taps]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, C, H, W) -> a tuple with the features of ``out_type``, as in mmpretrain."""
        self.check_images(images)
        x = self.embed(self.patch_embed.patchify(images), self.pos_embed[:, 1:])
        x = self.norm(self.forward_blocks(x)[0])
        if self.out_type == 'raw':
            return (x,)
        if self.out_type == 'cls_token':
            return (x[:, 0],)
        x = x[:, 1:]
        if self.out_type == 'featmap':
            return (x.transpose(1, 2).unflatten(2, self.grid),)
        return (self.fc_norm(x.mean(dim=1)),)

    def get_layer_depth(self, name: str, prefix: str = '') -> tuple[int, int]:
        """Group of a parameter for layer-wise learning-rate decay (docs/method.md, section 5).

        Args:
            name: name of the parameter in the whole model.
            prefix: prefix of this backbone in that name.

        Returns:
            The group and the number of groups. Class token, positions and patch embedding are group 0, block k is
            group k + 1, and everything else, heads included, is the last group, depth + 1.
        """
        num_groups = self.depth + 2
        if not name.startswith(prefix):
            return num_groups - 1, num_groups
        first, *rest = name.removeprefix(prefix).split('.')
        if first in ('cls_token', 'pos_embed', 'patch_embed'):
            return 0, num_groups
        if first == 'blocks':
            return int(rest[0]) + 1, num_groups
        return num_groups - 1, num_groups
