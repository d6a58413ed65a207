"""SimMIM (Xie et al., CVPR 2022): an example of a method in one file, with the config simmim_debug.py.

The encoder sees all patches, with a token in place of the masked ones, and a linear layer predicts their pixels. The
encoder is the suite's ViT, so every tool that takes BootMAE checkpoints takes those of SimMIM too.

Shape letters: B batch, N patches, P pixels of a patch (C * height * width), D width.
"""

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn import functional as F

from bootmae.models.init import init_transformer_weights
from bootmae.models.objectives import at_least_float32


def draw_masks(batch_size: int, grid: tuple[int, int], unit: int, ratio: float, device: torch.device) -> torch.Tensor:
    """Mask a share of the squares of ``unit`` x ``unit`` patches at random, the same number in each image.

    Returns:
        (B, N) booleans.

    Raises:
        ValueError: if the grid is not a multiple of the unit.
    """
    if grid[0] % unit or grid[1] % unit:
        raise ValueError(f'mask_unit={unit} does not divide a grid of {grid} patches: use a divisor of both')
    rows, columns = grid[0] // unit, grid[1] // unit
    ranks = torch.rand(batch_size, rows * columns, device=device).argsort(dim=1).argsort(dim=1)
    mask = (ranks < round(ratio * rows * columns)).view(-1, rows, columns)
    return mask.repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2).flatten(1)


def masked_l1(prediction: torch.Tensor, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over the masked patches: (B, N, P), (B, N, P), (B, N) -> ()."""
    error = F.l1_loss(at_least_float32(prediction), at_least_float32(patches), reduction='none').mean(dim=-1)
    return (error * mask).sum() / mask.sum()


@MODELS.register_module()
class PlainSimMIM(BaseSelfSupervisor):
    """SimMIM with a plain ViT (mmpretrain's is for Swin): one linear layer predicts the normalized pixels.

    Args:
        backbone: config of the encoder, a ``PlainViT``.
        mask_ratio: share of the image that is masked.
        mask_unit: side of a masked square in patches (32 pixels in the paper).
        data_preprocessor: config of the data preprocessor.
    """

    def __init__(
        self,
        backbone: dict,
        mask_ratio: float = 0.6,
        mask_unit: int = 2,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone=backbone, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        vit, self.mask_ratio, self.mask_unit = self.backbone, mask_ratio, mask_unit
        self.mask_token = nn.Parameter(torch.zeros(vit.embed_dims))
        self.decoder = nn.Linear(vit.embed_dims, vit.patch_embed.proj.weight[0].numel())

    def init_weights(self) -> None:
        if not self.is_init:
            nn.init.trunc_normal_(self.mask_token, std=0.02)
            init_transformer_weights(self.decoder)
        super().init_weights()

    def predict(self, images: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted and true pixels (B, N, P) of all patches of normalized images (B, C, H, W) under masks (B, N)."""
        vit = self.backbone
        vit.check_images(images)
        patches = vit.patch_embed.patchify(images)
        tokens = torch.where(mask.unsqueeze(-1), self.mask_token, vit.patch_embed(patches)) + vit.pos_embed[:, 1:]
        class_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1)
        features = vit.norm(vit.forward_blocks(torch.cat((class_token, tokens), dim=1))[0])
        return self.decoder(features[:, 1:]), patches

    def loss(self, inputs: torch.Tensor, data_samples: list | None = None, **kwargs) -> dict[str, torch.Tensor]:
        """``loss`` of a batch of normalized images (B, C, H, W)."""
        mask = draw_masks(len(inputs), self.backbone.grid, self.mask_unit, self.mask_ratio, inputs.device)
        return dict(loss=masked_l1(*self.predict(inputs, mask), mask))
