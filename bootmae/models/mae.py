"""mmpretrain's MAE with the masks or the pixel target of BootMAE, to measure what each of them does (docs/evidence.md).

Shape letters: B batch, N patches, V visible, D width, C channels, P pixels of a patch and channel.
"""

import numpy as np
import torch
from mmpretrain.models import MAEPretrainHead, MAEViT
from mmpretrain.registry import MODELS

from .masking import BlockMasking
from .objectives import normalize_patches


def channel_last(patches: torch.Tensor, channels: int) -> torch.Tensor:
    """Reorder (..., C * P), channel first, to (..., P * C)."""
    return patches.unflatten(-1, (channels, -1)).transpose(-1, -2).flatten(-2)


def channel_first(patches: torch.Tensor, channels: int) -> torch.Tensor:
    """Reorder (..., P * C), channel last, to (..., C * P)."""
    return patches.unflatten(-1, (-1, channels)).transpose(-1, -2).flatten(-2)


@MODELS.register_module()
class BlockMaskedMAEViT(MAEViT):
    """MAE's encoder with block-wise masks.

    Args:
        *args: arguments of mmpretrain's ``MAEViT``.
        masking: arguments of :class:`BlockMasking` except ``grid``. They replace ``mask_ratio``.
        **kwargs: arguments of mmpretrain's ``MAEViT``.
    """

    def __init__(self, *args, masking: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.masking = BlockMasking(grid=tuple(self.patch_resolution), **(masking or {}))

    def random_masking(
        self, x: torch.Tensor, mask_ratio: float = 0.75
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mask tokens (B, N, D), as in the base class, without using ``mask_ratio``.

        Returns:
            The visible tokens (B, V, D), the mask (B, N; 1 is masked) and ``ids_restore`` (B, N).
        """
        rows = [self.masking.draw_ids_shuffle() for _ in range(len(x))]
        ids_shuffle = torch.from_numpy(np.stack(rows)).to(x.device)
        visible = ids_shuffle[:, : self.masking.num_visible]
        mask = torch.ones(x.shape[:2], device=x.device).scatter_(1, visible, 0.0)
        return x.gather(1, visible.unsqueeze(-1).expand(-1, -1, x.shape[-1])), mask, ids_shuffle.argsort(dim=1)


@MODELS.register_module()
class PerChannelMAEHead(MAEPretrainHead):
    """MAE's head with the pixel target of BootMAE: each channel of a patch is normalized on its own."""

    def construct_target(self, target: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> (B, N, P * C), channel last."""
        channels = self.in_channels
        return channel_last(normalize_patches(channel_first(self.patchify(target), channels), channels), channels)
