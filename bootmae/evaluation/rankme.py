"""RankMe: the effective rank of features, which needs no labels (Garrido et al. 2023).

Shape letters: N images, D feature width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..models.vit import PlainViT

EPSILON = 1e-7  # the paper's


def rank_me(features: torch.Tensor, epsilon: float = EPSILON) -> float:
    """Return ``exp(-sum(p * log(p)))`` with ``p = s / sum(s) + epsilon`` for the singular values s of (N, D) features.

    It is between 1 (all features are multiples of one vector) and min(N, D) (all singular values are equal). The
    features are neither centered nor normalized. The result is NaN for features that are not finite or all zero.
    """
    if not features.isfinite().all():
        return float('nan')
    sizes = torch.linalg.svdvals(features.double())
    shares = sizes / sizes.sum() + epsilon
    return float(torch.exp(-(shares * shares.log()).sum()))


@contextmanager
def kept_before_norm(backbone: PlainViT) -> Iterator[list[torch.Tensor]]:
    """Keep the pooled features (B, D) before their LayerNorm, of each forward pass within the context.

    These are the mean of the patch tokens, or the class token if the backbone returns that. The LayerNorm scales each
    sample to unit variance, which would hide features that shrink.
    """
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        tokens = inputs[0]
        kept.append((tokens if tokens.ndim == 2 else tokens[:, 0]).detach().float().cpu())

    norm = backbone.fc_norm if backbone.out_type == 'avg_featmap' else backbone.norm
    handle = norm.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
