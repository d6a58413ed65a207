"""Transformer parts shared by encoders, decoders and downstream backbones.

Shape letters: B batch, T tokens, Q query tokens, D width, H heads, K head width (D // H), I inner width (H * K),
W windows, L tokens of a window, h and w rows and columns of a grid.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .positions import bias_table_size, offset_vectors, resize_bias_table

LAYER_NORM_EPS = 1e-6
HEAD_WIDTH_MULTIPLE = 8  # required by the fused attention kernels of GPUs


def layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, T, I) -> (B, H, T, K)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot-product attention of (B, Q, I) queries over (B, T, I) keys and values -> (B, Q, I).

    ``bias`` (H, Q, T) is added to the logits.
    """
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


def attend_on_grid(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Attention among the tokens of a grid with decomposed relative positions, (B, h * w, I) -> (B, h * w, I).

    The logit of query i and key j is ``q_i . k_j / sqrt(K) + q_i . rows[row_i, row_j] + q_i . columns[column_i,
    column_j]``. The last two terms are added as further channels: the query holds its product with every row and
    column vector, and the key holds a one-hot code of its own row and column. So no (H, T, T) bias is kept in memory.

    Args:
        q: (B, h * w, I).
        k: (B, h * w, I).
        v: (B, h * w, I).
        num_heads: H.
        rows: (h, h, K), see :func:`offset_vectors`.
        columns: (w, w, K).
    """
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    h, w, width = len(rows), len(columns), q.shape[-1]
    grid = q.unflatten(2, (h, w))
    along = (
        torch.einsum('bnrck,rsk->bnrcs', grid, rows.to(q.dtype)),
        torch.einsum('bnrck,csk->bnrcs', grid, columns.to(q.dtype)),
    )
    row_code, column_code = (torch.eye(side, dtype=q.dtype, device=q.device) for side in (h, w))
    code = torch.cat((row_code.repeat_interleave(w, dim=0), column_code.repeat(h, 1)), dim=1)
    q = torch.cat((q * width**-0.5, *(x.flatten(2, 3) for x in along)), dim=-1)
    k = torch.cat((k, code.expand(*k.shape[:2], -1, -1)), dim=-1)
    wide = q.shape[-1] + -q.shape[-1] % HEAD_WIDTH_MULTIPLE
    q, k, v = (F.pad(x, (0, wide - x.shape[-1])) for x in (q, k, v))  # flash attention needs one width for all three
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]
    return out.transpose(1, 2).flatten(2)


def head_width(dim: int, num_heads: int) -> int:
    """Width of one head, rounded down. Heads need not divide ``dim`` (pixel decoder of ViT-B: 512 // 12 = 42)."""
    if not 0 < num_heads <= dim:
        raise ValueError(f'num_heads={num_heads} does not fit a width of {dim}: choose 1..{dim}')
    return dim // num_heads


@dataclass
class TokenGroup:
    """Tokens that attend only to one another: W windows of one shape, or all tokens of an image."""

    shape: tuple[int, int] | None = None  # (W, L), windows in sequence order; None: all tokens
    bias_index: torch.Tensor | None = None  # (L, L) rows of the relative position bias table; None: no bias
    bias_grid: tuple[int, int] | None = None  # the grid of the table that bias_index refers to


@dataclass
class Tiling:
    """Tokens of a grid without class token, as one window or in windows of equal size (ViTDet).

    Windows at the right and bottom edges are padded with zeros, which take part as keys and values.
    """

    grid: tuple[int, int]  # h and w
    side: int | None = None  # of a window; None: one window of all tokens

    @property
    def window(self) -> tuple[int, int]:
        return self.grid if self.side is None else (self.side, self.side)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, h * w, D) -> (B * W, L, D)."""
        if self.side is None:
            return x
        short = [-n % self.side for n in self.grid]
        x = F.pad(x.unflatten(1, self.grid), (0, 0, 0, short[1], 0, short[0]))
        x = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))  # B, rows of windows, side, columns, side, D
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """(B * W, L, D) -> (B, h * w, D), without the padding."""
        if self.side is None:
            return x
        windows = [-(-n // self.side) for n in self.grid]
        x = x.unflatten(0, (-1, *windows)).unflatten(3, self.window).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)  # B, padded rows, padded columns, D
        return x[:, : self.grid[0], : self.grid[1]].flatten(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with query and value biases but no key bias (docs/method.md, section 2).

    A key bias would add the same number to all logits of a query, which the softmax cancels.

    Args:
        dim: token width D.
        num_heads: H; the inner width is ``(D // H) * H``.
        bias_grid: rows and columns of the grid for a trained relative position bias, or None. It starts at zero.
        offset_grid: rows and columns of the grid for decomposed relative positions, or None. They start at zero.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias_grid: tuple[int, int] | None = None,
        offset_grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        inner = head_width(dim, num_heads) * num_heads
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, dim)
        self.bias_grid = bias_grid
        self.relative_position_bias_table = (
            None if bias_grid is None else nn.Parameter(torch.zeros(bias_table_size(bias_grid), num_heads))
        )
        self.offset_grid = offset_grid
        for name, side in zip(('rel_pos_h', 'rel_pos_w'), offset_grid or (None, None)):
            self.register_parameter(name, side and nn.Parameter(torch.zeros(2 * side - 1, inner // num_heads)))

    def position_bias(self, group: TokenGroup) -> torch.Tensor | None:
        """(H, L, L) bias on the logits of a group; the table is interpolated if it is for another grid."""
        if self.relative_position_bias_table is None or group.bias_index is None:
            return None
        table = resize_bias_table(self.relative_position_bias_table, self.bias_grid, group.bias_grid)
        # Fused GPU kernels need a contiguous bias; without them all logits would be kept for the backward pass.
        return table[group.bias_index].permute(2, 0, 1).contiguous()

    def attend_groups(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: list[TokenGroup]
    ) -> torch.Tensor:
        """Attention within each group; the T tokens are ordered by group."""
        if groups[0].shape is None:
            return attend(q, k, v, self.num_heads, self.position_bias(groups[0]))
        batch, sizes = q.shape[0], [group.shape[0] * group.shape[1] for group in groups]
        outputs = []
        for group, *parts in zip(groups, *(x.split(sizes, dim=1) for x in (q, k, v)), strict=True):
            q, k, v = (x.unflatten(1, group.shape).flatten(0, 1) for x in parts)  # B * W, L, I
            out = attend(q, k, v, self.num_heads, self.position_bias(group))
            outputs.append(out.reshape(batch, -1, out.shape[-1]))  # B, W * L, I
        return torch.cat(outputs, dim=1)

    def attend_tiles(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
        """Attention within windows (B * W, L, I) of a grid."""
        if self.offset_grid is None:
            return attend(q, k, v, self.num_heads)
        rows, columns = map(offset_vectors, (self.rel_pos_h, self.rel_pos_w), window)
        return attend_on_grid(q, k, v, self.num_heads, rows, columns)

    def forward(
        self, x: torch.Tensor, num_queries: int | None = None, groups: list[TokenGroup] | Tiling | None = None
    ) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), or (B, Q, D) for the last ``num_queries`` tokens only.

        Without ``groups`` all tokens attend to all, without position bias.
        """
        assert groups is None or num_queries is None
        if num_queries is None:
            tiling = groups if isinstance(groups, Tiling) else None
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
            q, k, v = F.linear(tiling.split(x) if tiling else x, self.qkv.weight, bias).chunk(3, dim=-1)
            if tiling:
                return self.proj(tiling.join(self.attend_tiles(q, k, v, tiling.window)))
            if groups is not None and not isinstance(groups, Tiling):
                return self.proj(self.attend_groups(q, k, v, groups))
        else:
            q_weight, kv_weight = self.qkv.weight.tensor_split((len(self.q_bias),))
            bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
            q = F.linear(x[:, -num_queries:], q_weight, self.q_bias)
            k, v = F.linear(x, kv_weight, bias).chunk(2, dim=-1)
        return self.proj(attend(q, k, v, self.num_heads))


class CrossAttention(nn.Module):
    """Multi-head attention of decoder tokens over encoder tokens, with the biases of :class:`SelfAttention`.

    Args:
        dim: width of the decoder tokens (queries).
        context_dim: width of the encoder tokens (keys and values).
        num_heads: H; the inner width is ``(dim // H) * H``.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int):
        super().__init__()
        inner = head_width(dim, num_heads) * num_heads
        self.num_heads = num_heads
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(context_dim, 2 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(B, Q, dim), (B, T, context_dim) -> (B, Q, dim)."""
        bias = torch.cat((torch.zeros_like(self.v_bias), self.v_bias))
        q = F.linear(x, self.q.weight, self.q_bias)
        k, v = F.linear(context, self.kv.weight, bias).chunk(2, dim=-1)
        return self.proj(attend(q, k, v, self.num_heads))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm encoder block: self-attention, then MLP, each residual.

    Args:
        dim: token width D.
        num_heads: H.
        mlp_ratio: hidden width of the MLP divided by D.
        drop_path: drop-path rate of each residual branch.
        layer_scale: initial value of the layer scale of each branch, or None for no layer scale.
        bias_grid: see :class:`SelfAttention`.
        offset_grid: see :class:`SelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        bias_grid: tuple[int, int] | None = None,
        offset_grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = SelfAttention(dim, num_heads, bias_grid, offset_grid)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        for name in ('gamma_1', 'gamma_2'):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.register_parameter(name, gamma)

    def forward(
        self, x: torch.Tensor, num_queries: int | None = None, groups: list[TokenGroup] | Tiling | None = None
    ) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), or (B, Q, D) for the last ``num_queries`` tokens, which still attend to all T.

        ``groups`` states which tokens attend to which; None: all to all.
        """

        def residual(branch: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
            return self.drop_path(branch if gamma is None else gamma * branch)

        queries = x if num_queries is None else x[:, -num_queries:]
        queries = queries + residual(self.attn(self.norm1(x), num_queries, groups), self.gamma_1)
        return queries + residual(self.mlp(self.norm2(queries)), self.gamma_2)


class DropPath(nn.Module):
    """Leaves out a residual branch of random samples of a batch in training, as mmcv's and timm's class does.

    The probability of keeping it is a tensor: torch.compile would compile every float of theirs anew, and stops after
    eight.

    Args:
        rate: probability of leaving a branch out.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.register_buffer('keep', torch.tensor(1 - rate), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        noise = torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x.div(self.keep) * noise.add(self.keep).floor()


class PatchEmbed(nn.Module):
    """Linear embedding of non-overlapping patches. Its weight has the shape of the usual convolution.

    Args:
        patch_size: (height, width) of a patch in pixels.
        in_channels: image channels C.
        dim: token width D.
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, N, C * patch height * patch width): patches row by row, channel first in each."""
        (ph, pw), (b, c) = self.patch_size, images.shape[:2]
        x = images.unflatten(2, (-1, ph)).unflatten(4, (-1, pw))  # B, C, rows, ph, columns, pw
        return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * ph * pw)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, T, C * ph * pw) -> (B, T, D), for any subset of the patches."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
