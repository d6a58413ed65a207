"""Token groups of global and windowed attention. Tokens are ordered as [class, patches row by row].

Shape letters: N patches, W windows, L tokens of a window.
"""

import torch

from ..models.layers import TokenGroup
from ..models.positions import relative_index

Grid = tuple[int, int]


def all_tokens(
    grid: Grid, order: torch.Tensor | None = None, device: torch.device | str | None = None
) -> list[TokenGroup]:
    """One group of all 1 + N tokens, with relative positions over the whole grid.

    Args:
        grid: rows and columns of patches.
        order: (1 + N) order of the tokens. Default: row by row.
        device: where to create the index.
    """
    index = relative_index(grid, device=device)
    return [TokenGroup(bias_index=index if order is None else index[order][:, order], bias_grid=grid)]


def window_groups(
    grid: Grid, side: int, bias: bool = False, device: torch.device | str | None = None
) -> tuple[list[TokenGroup], torch.Tensor]:
    """Windows of ``side x side`` patches from the top left, with smaller ones at the right and bottom edges.

    A smaller window is equivalent to a padded window with masked padding (ViTDet's padding takes part as keys). The
    class token is a window of its own, so it exchanges information with patches in global blocks only, like patches of
    different windows.

    Args:
        grid: rows and columns of patches.
        side: side of a window in patches.
        bias: whether windows have relative positions. Offsets are counted in patches in windows of any size, so the
            table for ``side x side`` is never interpolated.
        device: where to create the indices.

    Returns:
        The groups and the order (1 + N) of their tokens: first the class token, then window by window.
    """
    patches = torch.arange(1, 1 + grid[0] * grid[1], device=device).view(grid)
    groups, order = [TokenGroup((1, 1))], [torch.zeros(1, dtype=torch.long, device=device)]
    for strip in _strips(patches, side):
        for part in _strips(strip.T, side):
            part = part.T
            rows, columns = (min(side, n) for n in part.shape)
            ids = part.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).transpose(1, 2)
            index = relative_index((rows, columns), (side, side), class_token=False, device=device) if bias else None
            order.append(ids.flatten())
            groups.append(TokenGroup((ids.numel() // (rows * columns), rows * columns), index, (side, side)))
    return groups, torch.cat(order)


def _strips(x: torch.Tensor, side: int) -> list[torch.Tensor]:
    """Split rows into those that fill whole windows and the rest."""
    whole = len(x) // side * side
    return [part for part in x.tensor_split((whole,)) if len(part)]
