"""Feature pyramids from the single-scale maps of a plain ViT.

Shape letters: B batch, D width of the ViT, h and w rows and columns of its patch grid.
"""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from ..models.layers import layer_norm


def double(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles rows and columns."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (B, C, h, w) at each position."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = layer_norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class TapPyramid(nn.Module):
    """The authors' four levels from four taps (docs/method.md, section 6): x4, x2, x1 and max-pooled by 2.

    Args:
        in_channels: D, which is also the width of the levels.
        norm_cfg: config of the batch normalization in level 0. Default: ``SyncBN``, which needs GPUs if several
            processes train. ``BN`` also works on CPUs.
    """

    num_taps = 4

    def __init__(self, in_channels: int, norm_cfg: dict | None = None):
        super().__init__()
        norm = build_norm_layer(norm_cfg or dict(type='SyncBN'), in_channels)[1]
        self.up4 = nn.Sequential(double(in_channels, in_channels), norm, nn.GELU(), double(in_channels, in_channels))
        self.up2 = nn.Sequential(double(in_channels, in_channels))

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Four maps (B, D, h, w) -> (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w), (B, D, h // 2, w // 2)."""
        first, second, third, last = maps
        return self.up4(first), self.up2(second), third, F.max_pool2d(last, kernel_size=2, stride=2)


@MODELS.register_module()
class SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid (Li et al. 2022): x4, x2, x1 and x1/2, all from the last map.

    Each level ends with a 1x1 and a 3x3 convolution, each followed by a LayerNorm over the channels.

    Args:
        in_channels: D.
        out_channels: width of every level.
        extra_level: add a level with every second row and column of the last one, for a region proposal network.
        scales: size of each level divided by the map's, out of 4, 2, 1 and 0.5.
    """

    num_taps = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        extra_level: bool = False,
        scales: Sequence[float] = (4, 2, 1, 0.5),
    ):
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        up4 = [double(in_channels, half), LayerNorm2d(half), nn.GELU(), double(half, quarter)]
        resized = {
            4: (up4, quarter),
            2: ([double(in_channels, half)], half),
            1: ([], in_channels),
            0.5: ([nn.MaxPool2d(2, stride=2)], in_channels),
        }
        if not scales or not set(scales) <= set(resized):
            raise ValueError(f'scales={tuple(scales)}: use scales out of {tuple(resized)}')
        self.levels = nn.ModuleList(
            nn.Sequential(
                *resize,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for resize, channels in (resized[scale] for scale in scales)
        )
        self.extra_level = extra_level

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Maps (B, D, h, w), of which the last is used -> a level (B, out_channels, ...) per scale, and the extra."""
        levels = [level(maps[-1]) for level in self.levels]
        if self.extra_level:
            levels.append(levels[-1][:, :, ::2, ::2])
        return tuple(levels)
