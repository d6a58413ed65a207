"""The target-aware decoder (paper section 3.3): a light decoder that reads one encoder block by cross-attention.

Shape letters: B batch, N patches, M masked, V visible, D encoder width, E decoder width.
"""

import torch
from mmengine.model import BaseModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from .init import init_transformer_weights
from .layers import CrossAttention, Mlp, SelfAttention, layer_norm
from .positions import sincos_positions


class DecoderBlock(nn.Module):
    """Pre-norm block: self-attention, cross-attention over encoder tokens, MLP, each residual."""

    def __init__(self, dim: int, context_dim: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.self_norm = layer_norm(dim)
        self.self_attn = SelfAttention(dim, num_heads)
        self.cross_norm = layer_norm(dim)
        self.context_norm = layer_norm(context_dim)
        self.cross_attn = CrossAttention(dim, context_dim, num_heads)
        self.mlp_norm = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor, context: torch.Tensor, num_queries: int | None = None) -> torch.Tensor:
        """(B, T, E), (B, 1 + V, D) -> (B, T, E), or the last ``num_queries`` tokens only."""
        queries = x if num_queries is None else x[:, -num_queries:]
        queries = queries + self.self_attn(self.self_norm(x), num_queries)
        queries = queries + self.cross_attn(self.cross_norm(queries), self.context_norm(context))
        return queries + self.mlp(self.mlp_norm(queries))


class PixelHead(nn.ConvTranspose2d):
    """Tokens to pixels: a transposed convolution whose stride equals its kernel, computed as a linear layer."""

    def __init__(self, dim: int, channels: int, patch_size: tuple[int, int]):
        super().__init__(dim, channels, patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, E) -> (B, M, C * patch height * patch width), channel first."""
        bias = self.bias.repeat_interleave(self.weight[0, 0].numel())
        return nn.functional.linear(x, self.weight.flatten(1).t(), bias)


class TargetAwareDecoder(BaseModule):
    """Predicts one target for the masked patches from the encoder's output and one tapped block.

    Tokens keep the order [class, visible, masked], since attention does not depend on their order. The last block
    computes the masked tokens only, because nothing else enters the loss.

    Args:
        encoder_dim: D.
        grid: rows and columns of the patch grid.
        embed_dims: E.
        depth: number of blocks, at least 1.
        num_heads: number of attention heads, which need not divide E.
        head: maps (B, M, E) to the prediction.
        mlp_ratio: hidden width of the MLPs divided by E.
        with_cp: recompute the blocks in the backward pass, which saves memory and costs time.
    """

    def __init__(
        self,
        encoder_dim: int,
        grid: tuple[int, int],
        embed_dims: int,
        depth: int,
        num_heads: int,
        head: nn.Module,
        mlp_ratio: float = 4.0,
        with_cp: bool = False,
    ):
        super().__init__()
        if depth < 1:
            raise ValueError(f'a decoder needs at least one block, not depth={depth}')
        self.embed = nn.Linear(encoder_dim, embed_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(sincos_positions(grid, embed_dims), requires_grad=False)
        self.blocks = nn.ModuleList(DecoderBlock(embed_dims, encoder_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = layer_norm(embed_dims)
        self.head = head
        self.with_cp = with_cp

    def init_weights(self) -> None:
        init_transformer_weights(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, latent: torch.Tensor, context: torch.Tensor, ids_masked: torch.Tensor) -> torch.Tensor:
        """Predict the masked patches.

        Args:
            latent: (B, 1 + V, D), the encoder output after its norm.
            context: (B, 1 + V, D), the output of the tapped block.
            ids_masked: (B, M), positions of the masked patches.

        Returns:
            (B, M, output width of the head).
        """
        masked = self.mask_token + self.pos_embed[0, 1:][ids_masked]
        visible = self.embed(latent).to(masked.dtype)  # keep the residual stream in float32 under autocast
        x = torch.cat((visible, masked), dim=1)
        for index, block in enumerate(self.blocks):
            args = x, context, ids_masked.shape[1] if index == len(self.blocks) - 1 else None
            recompute = self.with_cp and torch.is_grad_enabled()
            x = checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)
        return self.head(self.norm(x))
