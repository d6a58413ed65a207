"""The ViT as a backbone of mmpretrain, mmseg and mmdet: taps, any input size, relative positions, windows, pyramid.

Shape letters: B batch, C channels, H and W image size, h and w rows and columns of patches, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch.nn import functional as F

from ..models.layers import Tiling
from ..models.positions import resize_positions
from ..models.vit import PlainViT, patch_grid, resolve_arch
from .windows import all_tokens, window_groups

RELATIVE_POSITIONS = (False, True, 'decomposed')


@MMPRETRAIN_MODELS.register_module()  # so that mmpretrain too knows the name `mmpretrain.TransferViT`
@MODELS.register_module()  # the root registry, where mmpretrain, mmseg and mmdet find `TransferViT`
class TransferViT(PlainViT):
    """:class:`PlainViT` that gives feature maps to a segmentation or detection head.

    The maps are block outputs without a final norm, as in the authors' release and in ViTDet. Images may have any size
    that is a multiple of the patch, each batch its own: absolute positions and the relative positions of blocks that
    attend to all are interpolated to its grid; those within windows need no interpolation.

    Args:
        arch, patch_size, in_channels, drop_path_rate, trainable_positions, with_cp, init_cfg: of :class:`PlainViT`.
        img_size: the size that the stored positions are for, usually that of the training crops.
        depth: number of blocks, if it differs from the arch's.
        out_indices: blocks whose outputs are given, in order, the last block last; negative ones count from the end.
        pyramid: config of :class:`TapPyramid` or :class:`SimplePyramid` without ``in_channels``; None: give the maps.
        relative_positions: whether each block has a relative position bias of its own (BEiT), starting at zero. Costs
            (1 + h * w)^2 numbers a head in blocks that attend to all. ``decomposed``: ViTDet's, by rows and by columns,
            for a model without class token; costs h + w numbers a token and head.
        input_size: the size of images that decomposed relative positions of blocks that attend to all are for; by
            default ``img_size``.
        class_token: whether a class token goes along. Without one, all is as in ViTDet: windows at the edges are padded
            with zeros after the norm, which take part as keys and values; the stored positions keep the unused one of
            the class token.
        layer_scale: start value of a trained factor per channel on each residual branch, or None for none.
        window_size: side of the attention windows in patches, or None: all blocks attend to all. See
            :func:`window_groups` for edges and the class token.
        global_blocks: blocks that attend to all in spite of ``window_size``; by default the last of each quarter.
        frozen_stages: 0 fixes the embedding, k also the first k blocks; -1: nothing.
        pad: pad images with zeros at the right and bottom to a multiple of the patch, instead of refusing them. The
            maps then cover the padded image. Better: ``pad_size_divisor`` (mmdet) or ``size_divisor`` (mmseg) of the
            data preprocessor, which knows how to crop the result.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        depth: int | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] = (-1,),
        pyramid: dict | None = None,
        trainable_positions: bool = False,
        relative_positions: bool | str = False,
        input_size: int | Sequence[int] | None = None,
        class_token: bool = True,
        layer_scale: float | None = None,
        window_size: int | None = None,
        global_blocks: Sequence[int] | None = None,
        frozen_stages: int = -1,
        pad: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ):
        num_blocks = resolve_arch(arch)['depth'] if depth is None else depth
        windowed = _windowed(num_blocks, window_size, global_blocks)
        shared: dict[str, Any] = dict(
            arch=arch,
            img_size=img_size,
            patch_size=patch_size,
            depth=depth,
            in_channels=in_channels,
            drop_path_rate=drop_path_rate,
            final_norm=False,
            trainable_positions=trainable_positions,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        if relative_positions not in RELATIVE_POSITIONS:
            raise ValueError(f'relative_positions={relative_positions!r}: use one of {RELATIVE_POSITIONS}')
        if relative_positions and class_token != (relative_positions is True):
            raise ValueError(
                f'relative_positions={relative_positions!r} with class_token={class_token}: True is for a '
                "model with class token, 'decomposed' for one without"
            )
        grid = patch_grid(to_2tuple(input_size or img_size), to_2tuple(patch_size))
        kind = {False: None, True: 'bias_grid', 'decomposed': 'offset_grid'}[relative_positions]
        super().__init__(
            **shared,
            block_options=[
                dict(layer_scale=layer_scale) | ({kind: (window_size, window_size) if within else grid} if kind else {})
                for within in windowed
            ],
        )
        if not class_token:
            self.cls_token = None
        self.windowed, self.window_size, self.relative_positions = windowed, window_size, relative_positions
        self.out_indices = self._check_taps(out_indices)
        self.pyramid = MODELS.build(pyramid | dict(in_channels=self.embed_dims)) if pyramid else None
        if pyramid and len(self.out_indices) != self.pyramid.num_taps:
            raise ValueError(
                f'out_indices={tuple(out_indices)} are {len(self.out_indices)} taps, '
                f'{type(self.pyramid).__name__} takes {self.pyramid.num_taps}'
            )
        self.pad = pad
        self.frozen_stages = self._freeze(frozen_stages)

    def _check_taps(self, out_indices: Sequence[int]) -> tuple[int, ...]:
        """The taps counted from 0. The last block must be one: a block after it would never be trained."""
        taps = tuple(index + self.depth if index < 0 else index for index in out_indices)
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] != self.depth - 1:
            raise ValueError(
                f'out_indices={tuple(out_indices)} must rise within 0..{self.depth - 1} and end with the '
                f'last block, {self.depth - 1}: set depth to leave out later blocks'
            )
        return taps

    def _freeze(self, stages: int) -> int:
        if not -1 <= stages <= self.depth:
            raise ValueError(
                f'frozen_stages={stages}: use -1 (nothing), 0 (the embedding), up to {self.depth} (also all blocks)'
            )
        if stages >= 0:
            for fixed in (self.cls_token, self.pos_embed, self.patch_embed, *self.blocks[:stages]):
                if fixed is not None:
                    fixed.requires_grad_(False)
        return stages

    def train(self, mode: bool = True) -> 'TransferViT':
        super().train(mode)
        for block in self.blocks[: max(self.frozen_stages, 0)]:
            block.eval()
        return self

    @property
    def new_parts(self) -> dict[str, list[str]]:
        return super().new_parts | self.find_parts(
            {
                'layer scale': r'.*\.gamma_[12]$',
                'relative positions': r'.*\.(relative_position_bias_table|rel_pos_[hw])$',
                'pyramid': r'pyramid\.',
            }
        )

    def fit_images(self, images: torch.Tensor) -> torch.Tensor:
        """The images, padded to whole patches if need be and if allowed."""
        size = tuple(images.shape[-2:])
        short = [-n % patch for n, patch in zip(size, self.patch_size)]
        if not any(short):
            return images
        if not self.pad:
            raise ValueError(
                f'images of {size} pixels are no multiple of the patch size {self.patch_size}: let the '
                'data preprocessor pad them (pad_size_divisor in mmdet, size_divisor in mmseg, also in '
                'its test_cfg), or set pad=True in the backbone'
            )
        return F.pad(images, (0, short[1], 0, short[0]))

    def groups(self, grid: tuple[int, int], device: torch.device) -> tuple[list, torch.Tensor | None]:
        """For each block which tokens see which (:class:`TokenGroup`, :class:`Tiling`), and the order of the tokens.

        The order (1 + N) puts the tokens of a window together, once for all blocks; None: class token and patches row
        by row.
        """
        if self.cls_token is None:
            return [Tiling(grid, self.window_size if windowed else None) for windowed in self.windowed], None
        within = order = None
        if any(self.windowed):
            within, order = window_groups(grid, self.window_size, bool(self.relative_positions), device)
        everywhere = all_tokens(grid, order, device) if self.relative_positions and not all(self.windowed) else None
        return [within if windowed else everywhere for windowed in self.windowed], order

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, C, H, W) -> the pyramid's levels, or the tapped maps (B, D, h, w)."""
        maps = self.maps(images)
        return maps if self.pyramid is None else self.pyramid(maps)

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, C, H, W) -> the tapped maps (B, D, h, w)."""
        images = self.fit_images(images)
        grid = patch_grid(tuple(images.shape[-2:]), self.patch_size)
        patches, positions = self.patch_embed.patchify(images), resize_positions(self.pos_embed, self.grid, grid)
        groups, order = self.groups(grid, images.device)
        if order is not None:
            patches, positions = patches[:, order[1:] - 1], positions[:, order]
        _, taps = self.forward_blocks(self.embed(patches, positions[:, 1:]), self.out_indices, groups=groups)
        if order is not None:
            places = order.argsort()
            taps = [tap[:, places] for tap in taps]
        first = 0 if self.cls_token is None else 1
        return tuple(tap[:, first:].transpose(1, 2).unflatten(2, grid) for tap in taps)


def _windowed(depth: int, window_size: int | None, global_blocks: Sequence[int] | None) -> list[bool]:
    """Whether each block attends within windows."""
    if window_size is None:
        if global_blocks is not None:
            raise ValueError(f'global_blocks={tuple(global_blocks)} without window_size: all blocks attend to all')
        return [False] * depth
    if window_size < 1:
        raise ValueError(f'window_size={window_size}: give the side of a window in patches, or None')
    if global_blocks is None:
        global_blocks = [quarter * depth // 4 - 1 for quarter in range(1, 5) if quarter * depth // 4]
    chosen = {index + depth if index < 0 else index for index in global_blocks}
    if not chosen or not chosen <= set(range(depth)):
        raise ValueError(
            f'global_blocks={tuple(global_blocks)}: name at least one block of 0..{depth - 1}, since '
            'windows alone never see one another'
        )
    return [index not in chosen for index in range(depth)]
