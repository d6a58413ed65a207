"""RankMe: the effective rank of features, which needs no labels (Garrido et al. 2023).

Shape letters: N images, D feature width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..models.vit import PlainViT

EPSILON = 1e-7  # the paper's
BLOCK = 8  # rows of a block that is reduced at a time, as a multiple of D


class RankMe:
    """RankMe of features that come in batches, in memory for O(D * D) numbers.

    The factor R of a QR decomposition has the singular values of the features. Their Gram matrix would square them and
    lose those below 1e-8 of the largest, which rank-deficient features have.
    """

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []  # the factor of the features so far, and those that came later
        self.finite, self.count, self.width = True, 0, 0

    def add(self, features: torch.Tensor) -> None:
        """Count features (B, D)."""
        self.finite = self.finite and bool(features.isfinite().all())
        self.count, self.width = self.count + len(features), features.shape[1]
        for part in features.split(BLOCK * self.width) if self.finite else ():
            self.parts.append(part.double())
            if sum(map(len, self.parts)) > BLOCK * self.width:
                self.parts = [torch.linalg.qr(torch.cat(self.parts), mode='r').R]

    def value(self, epsilon: float = EPSILON) -> float:
        """Return ``exp(-sum(p * log(p)))`` with ``p = s / sum(s) + epsilon`` for the singular values s.

        It is between 1 (all features are multiples of one vector) and min(N, D) (all singular values are equal). The
        features are neither centered nor normalized. It is NaN for features that are not finite or all zero.
        """
        if not self.finite:
            return float('nan')
        sizes = torch.linalg.svdvals(torch.cat(self.parts))
        shares = sizes / sizes.sum() + epsilon
        return float(torch.exp(-(shares * shares.log()).sum()))


def rank_me(features: torch.Tensor, epsilon: float = EPSILON) -> float:
    """Return :class:`RankMe` of features (N, D)."""
    found = RankMe()
    found.add(features)
    return found.value(epsilon)


@contextmanager
def before_norm(backbone: PlainViT, keep: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call ``keep`` with the pooled features (B, D) before their LayerNorm, in each forward pass within the context.

    These are the mean of the patch tokens, or the class token if the backbone returns that. The LayerNorm scales each
    sample to unit variance, which would hide features that shrink.

    Args:
        backbone: The encoder.
        keep: Called with the features of each pass, float32 on the CPU.
    """

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        tokens = inputs[0]
        keep((tokens if tokens.ndim == 2 else tokens[:, 0]).detach().float().cpu())

    norm = backbone.fc_norm if backbone.out_type == 'avg_featmap' else backbone.norm
    handle = norm.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
