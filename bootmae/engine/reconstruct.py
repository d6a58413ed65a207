"""Pictures of what a pretrained model predicts for the masked patches.

Both methods predict *normalised* patches. To show them as pixels, each original patch's own mean and variance are put
back: brightness and contrast are given away, only the structure is the model's.
"""

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import nn

from ..checkpoints import load_run, read_checkpoint
from ..models import BootMAE
from ..models.layers import PatchEmbed
from ..models.objectives import PIXEL_EPS
from .run import load_config

MAE_EPS = 1e-6  # in mmpretrain's MAEPretrainHead


def load_pretrained(config: str, checkpoint: str) -> nn.Module:
    """A pretraining model with all weights of a run, in eval mode.

    Raises:
        FileNotFoundError, ValueError: if the file is missing or has no decoder; see :func:`load_run`.
    """
    cfg = load_config(config)
    model_cfg = cfg.model.to_dict()
    model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    model = MODELS.build(model_cfg)
    load_run(model, read_checkpoint(checkpoint), checkpoint)
    return model.eval()


def normalise(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    """RGB uint8 (n, H, W, 3) -> model input (n, 3, H, W)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return (x - model.data_preprocessor.mean) / model.data_preprocessor.std


def to_pixels(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Inverse of :func:`normalise`, clipped."""
    x = x * model.data_preprocessor.std + model.data_preprocessor.mean
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def unpatchify(patches: torch.Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """(n, N, C * ph * pw), channel first -> (n, C, H, W); the inverse of ``PatchEmbed.patchify``."""
    x = patches.unflatten(1, grid).unflatten(3, (-1, *patch_size))  # n, rows, columns, C, ph, pw
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def predict_bootmae(model: nn.Module, x: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Predicted patches (n, M, C * P) in input units: each channel of a patch gets its own statistics back."""
    out = model.predict(x, orders)
    patches = out.patches.unflatten(-1, (x.shape[1], -1))
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, unbiased=False, keepdim=True)
    return (out.pixels.view_as(patches) * (var + PIXEL_EPS).sqrt() + mean).flatten(-2)


def predict_mae(model: nn.Module, x: torch.Tensor, orders: torch.Tensor, num_masked: int) -> torch.Tensor:
    """The same of mmpretrain's MAE, under a given mask instead of its own random one."""
    def given_mask(tokens: torch.Tensor, mask_ratio: float):
        visible = orders[:, :-num_masked]
        kept = tokens.gather(1, visible.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return kept, None, orders.argsort(dim=1)

    backbone = model.backbone
    random_masking, backbone.random_masking = backbone.random_masking, given_mask
    try:
        latent, _, ids_restore = backbone(x)
    finally:
        backbone.random_masking = random_masking
    prediction = model.neck(latent, ids_restore)  # (n, N, P * C), channel last
    target = model.head.patchify(x)
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    pixels = prediction * (var + MAE_EPS).sqrt() + mean
    pixels = pixels.unflatten(-1, (-1, x.shape[1])).transpose(-1, -2).flatten(-2)  # channel first
    masked = orders[:, -num_masked:]
    return pixels.gather(1, masked.unsqueeze(-1).expand(-1, -1, pixels.shape[-1]))


@torch.no_grad()
def reconstruct(model: nn.Module, images: np.ndarray, orders: np.ndarray, num_masked: int,
                patch_size: tuple[int, int]) -> np.ndarray:
    """Images with their masked patches replaced by a model's predictions.

    Args:
        model: a BootMAE, or mmpretrain's MAE.
        images: RGB uint8 (n, H, W, 3).
        orders: (n, N) mask orders.
        num_masked: M.
        patch_size: (height, width) in pixels.

    Returns:
        RGB uint8 (n, H, W, 3).
    """
    x, orders = normalise(model, images), torch.from_numpy(orders)
    predicted = (predict_bootmae(model, x, orders) if isinstance(model, BootMAE) else
                 predict_mae(model, x, orders, num_masked))
    patches = PatchEmbed(patch_size, x.shape[1], 1).patchify(x)
    patches.scatter_(1, orders[:, -num_masked:].unsqueeze(-1).expand_as(predicted), predicted)
    grid = x.shape[2] // patch_size[0], x.shape[3] // patch_size[1]
    return to_pixels(model, unpatchify(patches, patch_size, grid))


def hide(images: np.ndarray, orders: np.ndarray, num_masked: int, patch_size: tuple[int, int],
         grey: int = 128) -> np.ndarray:
    """Images (n, H, W, 3) with their masked patches painted grey."""
    rows, columns = images.shape[1] // patch_size[0], images.shape[2] // patch_size[1]
    mask = np.zeros(orders.shape, dtype=bool)
    np.put_along_axis(mask, orders[:, -num_masked:], True, axis=1)
    mask = mask.reshape(-1, rows, columns).repeat(patch_size[0], axis=1).repeat(patch_size[1], axis=2)
    return np.where(mask[..., None], np.uint8(grey), images)
