"""The losses of BootMAE (docs/method.md, section 4). Pure functions that compute in at least float32.

Shape letters: B batch, N patches, M masked, C channels, P pixels of a patch and channel, D width.
"""

import torch
from torch.nn import functional as F

PIXEL_EPS = 1e-5
FEATURE_EPS = 1e-6


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_weights(ids_masked: torch.Tensor, grid: tuple[int, int], weighted: bool = True) -> torch.Tensor:
    """Loss weight of each patch: 0 if visible, else 1 + the share of masked patches in its 3 x 3 neighborhood.

    Args:
        ids_masked: (B, M) positions of the masked patches.
        grid: rows and columns of the patch grid.
        weighted: if False, every masked patch has weight 1.

    Returns:
        (B, N) float32, in image order. Positions outside the image count as visible, and the divisor is always 9.
    """
    mask = torch.zeros(len(ids_masked), grid[0] * grid[1], device=ids_masked.device)
    mask.scatter_(1, ids_masked, 1.0)
    if not weighted:
        return mask
    neighbors = F.avg_pool2d(mask.view(-1, 1, *grid), 3, stride=1, padding=1, count_include_pad=True)
    return mask * (1 + neighbors.view_as(mask))


def normalize_patches(patches: torch.Tensor, channels: int = 3) -> torch.Tensor:
    """Normalize each channel of each patch to zero mean and unit (biased) variance.

    Args:
        patches: (B, M, C * P), channel first.
        channels: C; 1 normalizes all channels of a patch together.

    Returns:
        The same shape, in at least float32.
    """
    x = at_least_float32(patches).unflatten(-1, (channels, -1))
    return F.layer_norm(x, x.shape[-1:], eps=PIXEL_EPS).flatten(-2)


def weighted_error(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each patch, summed with the weights and divided by the number of patches.

    Args:
        prediction: (B, M, values).
        target: (B, M, values).
        weights: (B, M) of the masked patches.
    """
    error = (at_least_float32(prediction) - at_least_float32(target)).square().mean(dim=-1)
    return (error * weights).sum() / weights.numel()


def pixel_loss(
    prediction: torch.Tensor, patches: torch.Tensor, weights: torch.Tensor, channels: int = 3
) -> torch.Tensor:
    """Loss R: error of (B, M, C * P) predictions against the normalized pixels of the masked patches."""
    return weighted_error(prediction, normalize_patches(patches, channels), weights)


def feature_loss(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Loss P: error of (B, M, D) predictions against the momentum features, after a LayerNorm without parameters."""
    prediction, target = (
        F.layer_norm(at_least_float32(x), x.shape[-1:], eps=FEATURE_EPS) for x in (prediction, target)
    )
    return weighted_error(prediction, target, weights)
