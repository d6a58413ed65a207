"""Absolute position embeddings and relative positions of a patch grid.

Shape letters: N patches, D width, H heads, K head width.
"""

import torch
from torch.nn import functional as F


def sincos_positions(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> torch.Tensor:
    """Fixed 2-D sin-cos position embedding, after zeros for the class token (docs/method.md, section 2).

    The channels hold ``[sin(row * w), cos(row * w), sin(column * w), cos(column * w)]`` with
    ``w_k = temperature ** (-k / (dim / 4))``. The row comes first, as in the authors' release.

    Args:
        grid: rows and columns of the patch grid.
        dim: width D.
        temperature: base of the wavelengths.

    Returns:
        (1, 1 + rows * columns, D), float32.

    Raises:
        ValueError: if ``dim`` is not a multiple of four.
    """
    if dim % 4:
        raise ValueError(f'a sin-cos position embedding needs a width that is a multiple of 4, not {dim}')
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing='ij')
    row, column = row.reshape(-1, 1) * omega, column.reshape(-1, 1) * omega
    patches = torch.cat((row.sin(), row.cos(), column.sin(), column.cos()), dim=1)
    return torch.cat((torch.zeros(1, dim), patches.float())).unsqueeze(0)


def resize_positions(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Interpolate a position embedding bicubically to another patch grid; the class token stays.

    Args:
        positions: (1, 1 + old rows * old columns, D).
        old: rows and columns of the embedding.
        new: rows and columns of the result.

    Returns:
        (1, 1 + new rows * new columns, D).
    """
    if tuple(old) == tuple(new):
        return positions
    class_token, patches = positions[:, :1], positions[:, 1:]
    patches = patches.unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new, mode='bicubic', align_corners=False)
    return torch.cat((class_token, patches.flatten(2).transpose(1, 2)), dim=1)


# Relative position bias: one trained number per offset (row and column) and head, and three per head for pairs with the
# class token. A table has the shape (offsets + 3, H). The offset (dr, dc), query minus key, is in row
# (dr + rows - 1) * (2 * columns - 1) + (dc + columns - 1).
CLASS_TO_PATCH, PATCH_TO_CLASS, CLASS_TO_CLASS = -3, -2, -1


def bias_table_size(grid: tuple[int, int]) -> int:
    """Number of rows of a relative position bias table: all offsets within the grid and three for the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def relative_index(
    grid: tuple[int, int],
    bias_grid: tuple[int, int] | None = None,
    class_token: bool = True,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Row of the bias table for each pair of query and key, numbered as in the authors' segmentation backbone.

    Args:
        grid: rows and columns of the patches that attend to one another.
        bias_grid: the grid of the table, at least as large. Default: ``grid``.
        class_token: whether a class token precedes the patches.
        device: where to create the result.

    Returns:
        (1 + N, 1 + N), or (N, N) without class token.
    """
    rows, columns = bias_grid or grid
    row = torch.arange(grid[0], device=device).unsqueeze(1).expand(grid).flatten()
    column = torch.arange(grid[1], device=device).expand(grid).flatten()
    row, column = (x.unsqueeze(1) - x for x in (row, column))
    index = (row + rows - 1) * (2 * columns - 1) + column + columns - 1
    if class_token:
        size = bias_table_size((rows, columns))  # the class token's rows are counted from the end
        index = F.pad(index - size, (1, 0, 1, 0), value=PATCH_TO_CLASS)
        index[0] = CLASS_TO_PATCH
        index[0, 0] = CLASS_TO_CLASS
        index = index + size
    return index


def resize_bias_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Interpolate a relative position bias table bicubically to another grid.

    The corners of the plane of offsets are aligned: offset zero stays zero, the largest offset stays the largest, and
    nothing is extrapolated. The three class-token rows are copied.

    Args:
        table: (``bias_table_size(old)``, H).
        old: rows and columns of the table.
        new: rows and columns of the result.

    Returns:
        (``bias_table_size(new)``, H).
    """
    if tuple(old) == tuple(new):
        return table
    offsets, class_rows = table[:-3], table[-3:]
    offsets = offsets.T.unflatten(1, tuple(2 * n - 1 for n in old)).unsqueeze(0)  # 1, H, offsets of rows, of columns
    offsets = F.interpolate(offsets, size=tuple(2 * n - 1 for n in new), mode='bicubic', align_corners=True)
    return torch.cat((offsets[0].flatten(1).T, class_rows))


# Decomposed relative positions (ViTDet): one vector per row offset and one per column offset, shared by all heads. A
# table has the shape (2 * side - 1, K). The offset d, query minus key, is in row d + side - 1.


def resize_offsets(table: torch.Tensor, side: int) -> torch.Tensor:
    """Interpolate a table of offsets linearly: (2 * old side - 1, K) -> (2 * side - 1, K)."""
    if len(table) == 2 * side - 1:
        return table
    return F.interpolate(table.T.unsqueeze(0), size=2 * side - 1, mode='linear', align_corners=False)[0].T


def offset_vectors(table: torch.Tensor, side: int) -> torch.Tensor:
    """(side, side, K): the vector for each pair of a query's row (or column) and a key's."""
    place = torch.arange(side, device=table.device)
    return resize_offsets(table, side)[place.unsqueeze(1) - place + side - 1]
