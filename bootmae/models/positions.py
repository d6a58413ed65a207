"""Position embeddings of a patch grid."""

import torch
from torch.nn import functional as F


def sincos_positions(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> torch.Tensor:
    """Fixed 2-D sin-cos position embedding with a zero class token in front (bootmae.md, section 2).

    The channels hold ``[sin(row * w), cos(row * w), sin(column * w), cos(column * w)]`` with
    ``w_k = temperature ** (-k / (dim / 4))``: the row comes first, as in the authors' release.

    Args:
        grid: rows and columns of the patch grid.
        dim: width D.

    Returns:
        (1, 1 + rows * columns, D), float32.

    Raises:
        ValueError: if ``dim`` is no multiple of four.
    """
    if dim % 4:
        raise ValueError(f'a sin-cos position embedding needs a width that is a multiple of 4, not {dim}')
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing='ij')
    row, column = row.reshape(-1, 1) * omega, column.reshape(-1, 1) * omega
    patches = torch.cat((row.sin(), row.cos(), column.sin(), column.cos()), dim=1)
    return torch.cat((torch.zeros(1, dim), patches.float())).unsqueeze(0)


def resize_positions(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Bicubic interpolation of a position embedding from one patch grid to another; the class token stays.

    Args:
        positions: (1, 1 + old rows * old columns, D).
        old: rows and columns it was made for.
        new: rows and columns wanted.

    Returns:
        (1, 1 + new rows * new columns, D).
    """
    if tuple(old) == tuple(new):
        return positions
    class_token, patches = positions[:, :1], positions[:, 1:]
    patches = patches.unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new, mode='bicubic', align_corners=False)
    return torch.cat((class_token, patches.flatten(2).transpose(1, 2)), dim=1)
