"""Which tokens attend to which: all to all, or within windows. Tokens are [class, patches in row-major order].

Shape letters: N patches, W windows, L tokens of a window.
"""

import torch

from ..models.layers import TokenGroup
from ..models.positions import relative_index

Grid = tuple[int, int]


def all_tokens(
    grid: Grid, order: torch.Tensor | None = None, device: torch.device | str | None = None
) -> list[TokenGroup]:
    """One group of all 1 + N tokens, in some order, with relative positions stretched over the whole grid."""
    index = relative_index(grid, device=device)
    return [TokenGroup(bias_index=index if order is None else index[order][:, order], bias_grid=grid)]


def window_groups(
    grid: Grid, side: int, bias: bool = False, device: torch.device | str | None = None
) -> tuple[list[TokenGroup], torch.Tensor]:
    """Windows of ``side x side`` patches from the top left, smaller ones at the right and bottom edges.

    A smaller window equals a padded one whose padding is masked; ViTDet pads with zeros that take part as keys. The
    class token is a window of its own: it goes through these blocks without seeing a patch or being seen. Patches
    reach it, and one another across windows, in the blocks that attend to all.

    Args:
        grid: rows and columns of patches.
        side: patches along one side of a window.
        bias: whether windows have relative positions. Offsets are counted in patches whatever the size of the window,
            so that the table, made for ``side x side``, is never interpolated.

    Returns:
        The groups, and the order (1 + N) of the tokens that they are for: those of a window stand together, so that
        no block has to look for them. The class token stays first.
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
    """The rows that fill whole windows, and those that are left over."""
    whole = len(x) // side * side
    return [part for part in x.tensor_split((whole,)) if len(part)]
