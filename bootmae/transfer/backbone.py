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
from ..text import count_of
from .windows import all_tokens, window_groups

RELATIVE_POSITIONS = (False, True, 'decomposed')


@MMPRETRAIN_MODELS.register_module()  # `mmpretrain.TransferViT`
@MODELS.register_module()  # the root registry: `TransferViT` in mmpretrain, mmseg and mmdet
class TransferViT(PlainViT):
    """:class:`PlainViT` that returns feature maps for a segmentation or detection head.

    The maps are block outputs without a final norm, as in the authors' release and in ViTDet. Each batch may have any
    image size that is a multiple of the patch size. Absolute positions and the relative positions of global blocks are
    interpolated to the grid of the batch. Relative positions within windows need no interpolation.

    Args:
        arch: see :class:`PlainViT`.
        img_size: image size of the stored positions, usually the size of the training crops.
        patch_size: see :class:`PlainViT`.
        depth: number of blocks, if smaller than the arch's.
        in_channels: see :class:`PlainViT`.
        drop_path_rate: see :class:`PlainViT`.
        out_indices: blocks whose outputs are returned, ascending, ending with the last block. Negative indices count
            from the end.
        pyramid: config of :class:`TapPyramid` or :class:`SimplePyramid` without ``in_channels``, or None to return the
            maps themselves.
        trainable_positions: see :class:`PlainViT`.
        relative_positions: True gives each block its own relative position bias (BEiT), starting at zero. It takes
            (1 + h * w)^2 numbers per head in global blocks. ``decomposed`` is ViTDet's, by rows and columns, for models
            without class token. It takes h + w numbers per token and head.
        input_size: image size for the decomposed relative positions of global blocks. Default: ``img_size``.
        class_token: use a class token. Without one the model works as in ViTDet: windows at the edges are padded with
            zeros after the norm, and the padding takes part as keys and values. The stored positions keep the unused
            position of the class token.
        layer_scale: initial value of the layer scale of each residual branch, or None for no layer scale.
        window_size: side of the attention windows in patches, or None for global attention in all blocks. See
            :func:`window_groups` for edges and the class token.
        global_blocks: blocks with global attention in spite of ``window_size``. Default: the last of each quarter.
        frozen_stages: 0 freezes the embedding, k also the first k blocks, -1 nothing.
        pad: pad images with zeros at the right and bottom to a multiple of the patch size, instead of raising an error.
            The maps then cover the padded image. Prefer ``pad_size_divisor`` (mmdet) or ``size_divisor`` (mmseg) of the
            data preprocessor, which crops the result again.
        with_cp: see :class:`PlainViT`.
        init_cfg: see :class:`PlainViT`.
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
        grid = patch_grid(tuple(to_2tuple(input_size or img_size)), tuple(to_2tuple(patch_size)))
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
                f'out_indices={tuple(out_indices)} are {count_of(len(self.out_indices), "tap")}, '
                f'{type(self.pyramid).__name__} takes {self.pyramid.num_taps}'
            )
        self.pad = pad
        self.frozen_stages = self._freeze(frozen_stages)

    def _check_taps(self, out_indices: Sequence[int]) -> tuple[int, ...]:
        """Count the taps from 0 and check them. The last block must be a tap, otherwise it would never be trained."""
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
        """Pad images to whole patches if ``pad`` is set.

        Raises:
            ValueError: if their size is not a multiple of the patch size and ``pad`` is not set.
        """
        size = tuple(images.shape[-2:])
        short = [-n % patch for n, patch in zip(size, self.patch_size)]
        if not any(short):
            return images
        if not self.pad:
            raise ValueError(
                f'images of {size} pixels are not a multiple of the patch size {self.patch_size}: let the '
                'data preprocessor pad them (pad_size_divisor in mmdet, size_divisor in mmseg, also in '
                'its test_cfg), or set pad=True in the backbone'
            )
        return F.pad(images, (0, short[1], 0, short[0]))

    def groups(self, grid: tuple[int, int], device: torch.device) -> tuple[list, torch.Tensor | None]:
        """Which tokens attend to which in each block, and the order of the tokens.

        Args:
            grid: rows and columns of patches.
            device: where to create indices.

        Returns:
            A list of :class:`TokenGroup` or a :class:`Tiling` for each block, and the order (1 + N), which puts the
            tokens of a window together once for all blocks. The order is None for row by row.
        """
        if self.cls_token is None:
            return [Tiling(grid, self.window_size if windowed else None) for windowed in self.windowed], None
        within = order = None
        if any(self.windowed):
            within, order = window_groups(grid, self.window_size, bool(self.relative_positions), device)
        everywhere = all_tokens(grid, order, device) if self.relative_positions and not all(self.windowed) else None
        return [within if windowed else everywhere for windowed in self.windowed], order

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, C, H, W) -> the levels of the pyramid, or the tapped maps (B, D, h, w) without a pyramid."""
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
            raise ValueError(
                f'global_blocks={tuple(global_blocks)} without window_size: all blocks are global, so leave it out'
            )
        return [False] * depth
    if window_size < 1:
        raise ValueError(f'window_size={window_size}: use the side of a window in patches, at least 1, or None')
    if global_blocks is None:
        global_blocks = [quarter * depth // 4 - 1 for quarter in range(1, 5) if quarter * depth // 4]
    chosen = {index + depth if index < 0 else index for index in global_blocks}
    if not chosen or not chosen <= set(range(depth)):
        raise ValueError(
            f'global_blocks={tuple(global_blocks)}: name at least one block of 0..{depth - 1}, because '
            'windows exchange information in global blocks only'
        )
    return [index not in chosen for index in range(depth)]
