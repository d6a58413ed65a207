"""Which tokens attend to which: all to all, or within windows. Tokens are [class, patches in row-major order].

Shape letters: N patches, W windows, L tokens of a window.
"""

import torch

from ..models.layers import TokenGroup
from ..models.positions import relative_index

Grid = tuple[int, int]


def all_tokens(grid: Grid, device: torch.device | str | None = None) -> list[TokenGroup]:
    """One group of all 1 + N tokens, with relative positions stretched over the whole grid."""
    return [TokenGroup(bias_index=relative_index(grid, device=device), bias_grid=grid)]


def window_groups(grid: Grid, side: int, bias: bool = False,
                  device: torch.device | str | None = None) -> list[TokenGroup]:
    """Windows of ``side x side`` patches from the top left, smaller ones at the right and bottom edges.

    A smaller window equals a padded one whose padding is masked; ViTDet pads with zeros that take part as keys. The
    class token is a window of its own: it goes through these blocks without seeing a patch or being seen. Patches
    reach it, and one another across windows, in the blocks that attend to all.

    Args:
        grid: rows and columns of patches.
        side: patches along one side of a window.
        bias: whether windows have relative positions. Offsets are counted in patches whatever the size of the window,
            so that the table, made for ``side x side``, is never interpolated.
    """
    patches = torch.arange(1, 1 + grid[0] * grid[1], device=device).view(grid)
    groups = [TokenGroup(torch.zeros(1, 1, dtype=torch.long, device=device))]
    for strip in _strips(patches, side):
        for part in _strips(strip.T, side):
            part = part.T
            rows, columns = (min(side, n) for n in part.shape)
            ids = part.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).transpose(1, 2)
            index = relative_index((rows, columns), (side, side), class_token=False, device=device) if bias else None
            groups.append(TokenGroup(ids.reshape(-1, rows * columns), index, (side, side)))
    return groups


def _strips(x: torch.Tensor, side: int) -> list[torch.Tensor]:
    """The rows that fill whole windows, and those that are left over."""
    whole = len(x) // side * side
    return [part for part in x.tensor_split((whole, )) if len(part)]
