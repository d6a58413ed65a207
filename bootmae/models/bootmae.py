"""BootMAE (Dong et al., ECCV 2022): masked autoencoding bootstrapped by a momentum encoder.

Shape letters: B batch, N patches, M masked, V visible, D encoder width, E pixel-decoder width, C channels, P pixels of
a patch and channel.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from torch import nn

from ..text import count_of
from .decoder import PixelHead, TargetAwareDecoder
from .masking import BlockMasking
from .objectives import at_least_float32, feature_loss, pixel_loss, token_weights


@dataclass
class Prediction:
    """Result of a forward pass for the M masked patches of each image, in the order of ``ids_masked``."""

    ids_masked: torch.Tensor  # (B, M) positions
    weights: torch.Tensor  # (B, M) loss weights
    pixels: torch.Tensor  # (B, M, C * P) predicted, normalized
    patches: torch.Tensor  # (B, M, C * P) original pixels
    features: torch.Tensor  # (B, M, D) predicted
    targets: torch.Tensor  # (B, M, D) momentum features


@MODELS.register_module()
class BootMAE(BaseSelfSupervisor):
    """Bootstrapped masked autoencoder.

    The online encoder sees the visible patches. For the masked patches, one target-aware decoder predicts the
    normalized pixels and another one the features of the momentum encoder, which sees the whole image.

    The momentum encoder is part of the algorithm and of its checkpoints. It gets no gradient. ``BootMAEHook`` calls
    :meth:`update_momentum` after each optimizer step.

    Args:
        backbone: config of the online encoder, a :class:`PlainViT`.
        pixel_decoder: ``embed_dims`` (E, default 512), ``depth`` (2), ``num_heads`` and ``with_cp`` (the encoder's),
            ``mlp_ratio`` (4) and ``tap``, the encoder block that the decoder reads (0, the first).
        feature_decoder: the same keys except ``embed_dims``, which is D. ``tap`` defaults to the last block.
        masking: arguments of :class:`BlockMasking` except ``grid``.
        weighted: give patches with masked neighbors a higher weight in the losses.
        per_channel: normalize the pixels of each channel of a patch on their own. If False, all channels are normalized
            together, as in MAE, so that the target keeps the color of a patch.
        pixel_weight: weight of the pixel loss; 0 trains on the feature loss alone.
        fp32_decoder: run both decoders in float32 even under autocast. The losses always use float32.
        data_preprocessor: config of the data preprocessor. It should normalize with mean = std = 127.5 (of 0..255).
    """

    def __init__(
        self,
        backbone: dict,
        pixel_decoder: dict | None = None,
        feature_decoder: dict | None = None,
        masking: dict | None = None,
        weighted: bool = True,
        per_channel: bool = True,
        pixel_weight: float = 1.0,
        fp32_decoder: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone=backbone, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        vit = self.backbone
        self.masking = BlockMasking(grid=vit.grid, **(masking or {}))
        if pixel_weight < 0:
            raise ValueError(f'BootMAE pixel_weight={pixel_weight}: give a weight of the pixel loss of at least 0')
        self.weighted, self.pixel_weight, self.fp32_decoder = weighted, pixel_weight, fp32_decoder
        shared = dict(depth=2, num_heads=vit.num_heads, with_cp=vit.with_cp)
        pixel = shared | dict(embed_dims=512, tap=0) | (pixel_decoder or {})
        feature = shared | dict(tap=vit.depth - 1) | (feature_decoder or {})
        self.taps = tuple(self._check_tap(cfg.pop('tap')) for cfg in (pixel, feature))
        channels = vit.patch_embed.proj.in_channels
        self.target_groups = channels if per_channel else 1
        self.pixel_decoder = TargetAwareDecoder(
            vit.embed_dims, vit.grid, head=PixelHead(pixel['embed_dims'], channels, vit.patch_size), **pixel
        )
        self.feature_decoder = TargetAwareDecoder(
            vit.embed_dims, vit.grid, vit.embed_dims, head=nn.Linear(vit.embed_dims, vit.embed_dims), **feature
        )
        self.momentum = copy.deepcopy(vit)
        self.momentum.norm = nn.Identity()  # the target is the output of the last block
        self.momentum.requires_grad_(False)
        self.register_buffer('feature_weight', torch.ones(()), persistent=False)

    def _check_tap(self, tap: int) -> int:
        depth = self.backbone.depth
        if not 0 <= tap < depth:
            raise ValueError(f'decoder tap {tap} is not a block of an encoder with depth {depth}: use 0..{depth - 1}')
        return tap

    def init_weights(self) -> None:
        """Initialize the weights once, see :class:`PlainViT`; the momentum encoder starts as a copy of the online."""
        initialized = self.is_init
        super().init_weights()
        if not initialized:
            self.update_momentum(0.0)

    def train(self, mode: bool = True) -> 'BootMAE':
        super().train(mode)
        self.momentum.eval()
        return self

    @torch.no_grad()
    def update_momentum(self, decay: float) -> None:
        """Set each momentum weight to ``decay * momentum + (1 - decay) * online``."""
        online = dict(self.backbone.named_parameters())
        pairs = [(weight, online[name]) for name, weight in self.momentum.named_parameters()]
        torch._foreach_lerp_(*map(list, zip(*pairs, strict=True)), weight=1 - decay)

    def batch_ids_shuffle(self, data_samples: list | None, batch_size: int, device: torch.device) -> torch.Tensor:
        """Patch orders of a batch: those that the data pipeline drew (``DrawMask``), otherwise new ones.

        Returns:
            (B, N) ``ids_shuffle``; the last M patches of each row are masked.

        Raises:
            ValueError: if the orders are for another grid.
        """
        if data_samples is not None and 'ids_shuffle' in data_samples[0]:
            rows = [sample.ids_shuffle for sample in data_samples]
        else:
            rows = [self.masking.draw_ids_shuffle() for _ in range(batch_size)]
        ids_shuffle = torch.from_numpy(np.stack(rows))
        if device.type == 'cuda':
            ids_shuffle = ids_shuffle.pin_memory()  # otherwise the copy waits for the GPU
        ids_shuffle = ids_shuffle.to(device, non_blocking=True)
        if ids_shuffle.shape != (batch_size, self.masking.num_patches):
            raise ValueError(
                f'ids_shuffle of shape {tuple(ids_shuffle.shape)} does not fit {count_of(batch_size, "image")} of '
                f"{self.masking.grid} patches: give DrawMask the model's img_size and patch_size"
            )
        return ids_shuffle

    def predict(self, images: torch.Tensor, ids_shuffle: torch.Tensor) -> Prediction:
        """Predict the masked patches of normalized images (B, C, H, W), given ``ids_shuffle`` (B, N)."""
        vit, num_visible = self.backbone, self.masking.num_visible
        vit.check_images(images)
        patches = vit.patch_embed.patchify(images)
        patches = patches.gather(1, ids_shuffle.unsqueeze(-1).expand_as(patches))
        positions = vit.pos_embed[0, 1:][ids_shuffle]
        visible, masked = patches.tensor_split((num_visible,), dim=1)
        ids_masked = ids_shuffle[:, num_visible:]

        x, taps = vit.forward_blocks(vit.embed(visible, positions[:, :num_visible]), self.taps)
        latent = vit.norm(x)
        weights = token_weights(ids_masked, self.masking.grid, self.weighted).gather(1, ids_masked)
        return Prediction(
            ids_masked=ids_masked,
            weights=weights,
            pixels=self.decode(self.pixel_decoder, latent, taps[0], ids_masked),
            patches=masked,
            features=self.decode(self.feature_decoder, latent, taps[1], ids_masked),
            targets=self.momentum_features(patches, positions),
        )

    def decode(
        self, decoder: nn.Module, latent: torch.Tensor, context: torch.Tensor, ids_masked: torch.Tensor
    ) -> torch.Tensor:
        """Run a :class:`TargetAwareDecoder`, without autocast if ``fp32_decoder`` is set."""
        if not self.fp32_decoder:
            return decoder(latent, context, ids_masked)
        with torch.autocast(latent.device.type, enabled=False):
            return decoder(at_least_float32(latent), at_least_float32(context), ids_masked)

    @torch.no_grad()
    def momentum_features(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Momentum features of the last M patches: (B, N, C * P) patches, (B, N, D) positions -> (B, M, D)."""
        tokens = self.momentum.embed(patches, positions)
        return self.momentum.forward_blocks(tokens, num_queries=self.masking.num_masked)[0]

    def losses(self, images: torch.Tensor, ids_shuffle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel loss R and feature loss P of normalized images (B, C, H, W), given ``ids_shuffle`` (B, N).

        ``compile='whole'`` compiles this method.
        """
        out = self.predict(images, ids_shuffle)
        return (
            pixel_loss(out.pixels, out.patches, out.weights, self.target_groups),
            feature_loss(out.features, out.targets, out.weights),
        )

    def loss(self, inputs: torch.Tensor, data_samples: list | None = None, **kwargs) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch.

        Args:
            inputs: (B, C, H, W) normalized images.
            data_samples: each sample may carry ``ids_shuffle`` (N,).

        Returns:
            ``loss_pixel`` (R times ``pixel_weight``) and ``loss_feature`` (f * P), whose sum is minimized, and
            ``feature_error`` (P) for the log.
        """
        pixel, feature = self.losses(inputs, self.batch_ids_shuffle(data_samples, len(inputs), inputs.device))
        # New tensors, because under CUDA graphs the next step reuses the same memory for its losses.
        return dict(
            loss_pixel=self.pixel_weight * pixel,
            loss_feature=self.feature_weight * feature,
            feature_error=feature.detach().clone(),
        )
