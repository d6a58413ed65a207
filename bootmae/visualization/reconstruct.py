"""Reconstructions: the predictions of a pretrained model for masked patches.

Both methods predict *normalized* patches. To show them as pixels, each patch gets the mean and variance of the original
patch back. This leaks brightness and contrast; only the structure comes from the model. A picture without this leak
uses one mean and deviation for all patches, those of the visible patches.

Shape letters: n images, N patches, M masked, C channels, P pixels of a patch and channel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..models import BootMAE, PerChannelMAEHead
from ..models.layers import PatchEmbed
from ..models.mae import channel_first
from ..models.objectives import PIXEL_EPS

MAE_EPS = 1e-6  # in mmpretrain's MAEPretrainHead


def draw_masks(model: nn.Module, count: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """Draw masks as in a model's training: block-wise if it has a ``masking``, otherwise uniformly random.

    Returns:
        ``ids_shuffle`` (n, N), the patches of each image with the masked ones last, and M.
    """
    rng = np.random.RandomState(seed)
    masking = getattr(model if isinstance(model, BootMAE) else model.backbone, 'masking', None)
    if masking is not None:
        return np.stack([masking.draw_ids_shuffle(rng) for _ in range(count)]), masking.num_masked
    patches = int(np.prod(model.backbone.patch_resolution))
    visible = int(patches * (1 - model.backbone.mask_ratio))
    return np.stack([rng.permutation(patches) for _ in range(count)]), patches - visible


def normalize(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    """Convert RGB uint8 (n, H, W, 3) to model input (n, 3, H, W)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return (x - model.data_preprocessor.mean) / model.data_preprocessor.std


def to_pixels(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Invert :func:`normalize` and clip."""
    x = x * model.data_preprocessor.std + model.data_preprocessor.mean
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def shown_channels(images: np.ndarray, channels: Sequence[int] | None = None) -> list[int]:
    """Return the channels of images (n, H, W, C) that are drawn.

    Args:
        images: The images.
        channels: Three channels, or one that is shown in gray. By default the first three, or the first if there are
            fewer.

    Raises:
        ValueError: For a channel that the images do not have, or another number of them.
    """
    count = images.shape[-1]
    chosen = list(channels) if channels else [0, 1, 2] if count >= 3 else [0]
    if len(chosen) not in (1, 3) or not set(chosen) <= set(range(count)):
        raise ValueError(f'channels {chosen} cannot be shown: give one or three of 0 to {count - 1}')
    return chosen


def brightness(images: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Return the values that become black and white, the 1st and 99th percentile of each chosen channel: (2, channels).

    The values of satellites and microscopes often fill a small part of their range, and would be drawn black.
    """
    low, high = np.percentile(images[..., list(chosen)], (1, 99), axis=(0, 1, 2))
    return np.stack([low, np.where(high > low, high, low + 1)])


def as_colors(images: np.ndarray, chosen: Sequence[int], limits: np.ndarray | None = None) -> np.ndarray:
    """Return channels of images (n, H, W, C) of 0..255 as red, green and blue: uint8 (n, H, W, 3).

    Args:
        images: The images.
        chosen: One or three channels, see :func:`shown_channels`.
        limits: Values of these channels that become black and white (2, channels), by default 0 and 255.
    """
    shown = images[..., list(chosen)]
    if limits is not None:
        shown = (shown - limits[0]) * (255 / (limits[1] - limits[0]))
    shown = np.repeat(shown, 3 // len(chosen), axis=-1)
    return shown if shown.dtype == np.uint8 else shown.round().clip(0, 255).astype(np.uint8)


def unpatchify(patches: torch.Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Invert ``PatchEmbed.patchify``: (n, N, C * ph * pw), channel first -> (n, C, H, W)."""
    x = patches.unflatten(1, grid).unflatten(3, (-1, *patch_size))  # n, rows, columns, C, ph, pw
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def mae_output(model: nn.Module, x: torch.Tensor, ids_shuffle: torch.Tensor, num_masked: int) -> torch.Tensor:
    """Return the patches that mmpretrain's MAE predicts under a given mask: (n, M, P * C), channel last."""

    def given_mask(tokens: torch.Tensor, mask_ratio: float):
        visible = ids_shuffle[:, :-num_masked]
        kept = tokens.gather(1, visible.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return kept, None, ids_shuffle.argsort(dim=1)

    backbone = model.backbone
    random_masking, backbone.random_masking = backbone.random_masking, given_mask
    try:
        latent, _, ids_restore = backbone(x)
    finally:
        backbone.random_masking = random_masking
    return pick(model.neck(latent, ids_restore), ids_shuffle[:, -num_masked:])


def pick(patches: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Select patches of each image: (n, N, values), (n, M) -> (n, M, values)."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def target_groups(model: nn.Module, channels: int) -> int:
    """Number of groups of channels that a model's target normalizes on their own: one, or every channel."""
    if isinstance(model, BootMAE):
        return model.target_groups
    return channels if isinstance(model.head, PerChannelMAEHead) else 1


def with_statistics(
    output: torch.Tensor, patches: torch.Tensor, groups: int, eps: float, unbiased: bool = False
) -> torch.Tensor:
    """Give predictions the mean and variance of the original patches back; both (n, M, C * P), channel first."""
    parts = patches.unflatten(-1, (groups, -1))
    mean, var = parts.mean(-1, keepdim=True), parts.var(-1, unbiased=unbiased, keepdim=True)
    return (output.view_as(parts) * (var + eps).sqrt() + mean).flatten(-2)


def predict_bootmae(model: BootMAE, x: torch.Tensor, ids_shuffle: torch.Tensor) -> torch.Tensor:
    """Predict patches (n, M, C * P) in input units, with the statistics of the original patches."""
    out = model.predict(x, ids_shuffle)
    return with_statistics(out.pixels, out.patches, model.target_groups, PIXEL_EPS)


def predict_mae(model: nn.Module, x: torch.Tensor, ids_shuffle: torch.Tensor, num_masked: int) -> torch.Tensor:
    """Do the same for mmpretrain's MAE, which normalizes patches over all channels together and without bias."""
    channels = x.shape[1]
    output = channel_first(mae_output(model, x, ids_shuffle, num_masked), channels)
    patches = PatchEmbed((model.head.patch_size,) * 2, channels, 1).patchify(x)
    patches = pick(patches, ids_shuffle[:, -num_masked:])
    if isinstance(model.head, PerChannelMAEHead):
        return with_statistics(output, patches, channels, PIXEL_EPS)
    return with_statistics(output, patches, 1, MAE_EPS, unbiased=True)


def predict_without_leak(
    model: nn.Module, x: torch.Tensor, ids_shuffle: torch.Tensor, num_masked: int, patch_size: tuple[int, int]
) -> torch.Tensor:
    """Predict patches (n, M, C * P) in input units with the mean and deviation of the visible patches.

    The mean is that of the visible patches of all images, the deviation the root mean square of those within patches.
    As in their targets, the statistics are per channel (BootMAE) or over all channels (MAE). Masked patches do not
    contribute.
    """
    channels = x.shape[1]
    visible = pick(PatchEmbed(patch_size, channels, 1).patchify(x), ids_shuffle[:, :-num_masked])
    if isinstance(model, BootMAE):
        output = model.predict(x, ids_shuffle).pixels
    else:
        output = channel_first(mae_output(model, x, ids_shuffle, num_masked), channels)
    output, parts = (values.unflatten(-1, (target_groups(model, channels), -1)) for values in (output, visible))
    mean = parts.mean(dim=(0, 1, 3)).unsqueeze(-1)
    deviation = parts.var(-1, unbiased=False).mean(dim=(0, 1)).sqrt().unsqueeze(-1)
    return (output * deviation + mean).flatten(-2)


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    images: np.ndarray,
    ids_shuffle: np.ndarray,
    num_masked: int,
    patch_size: tuple[int, int],
    statistics: str = 'own',
) -> np.ndarray:
    """Replace the masked patches of images by the predictions of a model.

    Args:
        model: A BootMAE, or mmpretrain's MAE.
        images: RGB uint8 (n, H, W, 3).
        ids_shuffle: Patches of each image with the masked ones last (n, N).
        num_masked: M.
        patch_size: (height, width) in pixels.
        statistics: Conversion of normalized predictions to pixels: ``own`` takes the statistics of each original patch
            (a leak), ``one`` the same for all patches, see :func:`predict_without_leak`. ``none`` is for a model that
            predicts pixels.

    Returns:
        RGB uint8 (n, H, W, 3).
    """
    x, ids = normalize(model, images), torch.from_numpy(ids_shuffle)
    if statistics == 'one':
        predicted = predict_without_leak(model, x, ids, num_masked, patch_size)
    elif statistics == 'none':
        predicted = channel_first(mae_output(model, x, ids, num_masked), x.shape[1])
    elif isinstance(model, BootMAE):
        predicted = predict_bootmae(model, x, ids)
    else:
        predicted = predict_mae(model, x, ids, num_masked)
    patches = PatchEmbed(patch_size, x.shape[1], 1).patchify(x)
    patches.scatter_(1, ids[:, -num_masked:].unsqueeze(-1).expand_as(predicted), predicted)
    grid = x.shape[2] // patch_size[0], x.shape[3] // patch_size[1]
    return to_pixels(model, unpatchify(patches, patch_size, grid))


def hide(
    images: np.ndarray, ids_shuffle: np.ndarray, num_masked: int, patch_size: tuple[int, int], gray: int = 128
) -> np.ndarray:
    """Paint the masked patches of images (n, H, W, 3) gray."""
    rows, columns = images.shape[1] // patch_size[0], images.shape[2] // patch_size[1]
    mask = np.zeros(ids_shuffle.shape, dtype=bool)
    np.put_along_axis(mask, ids_shuffle[:, -num_masked:], True, axis=1)
    mask = mask.reshape(-1, rows, columns).repeat(patch_size[0], axis=1).repeat(patch_size[1], axis=2)
    return np.where(mask[..., None], np.uint8(gray), images)
