"""Optimizer wrappers that skip steps with NaN or Inf, in float32, bfloat16 and float16."""

from contextlib import contextmanager

import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return all gradients of an optimizer's parameters."""
    return [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]


def any_nonfinite(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return 1.0 if any value in tensors of one device is NaN or infinite, else 0.0; () float32 on that device.

    Uses torch's check for loss scaling, in one pass and without synchronization; it multiplies by 1 in place.
    """
    device = gradients[0].device if gradients else None
    found, one = torch.zeros((), device=device), torch.ones((), device=device)
    for dtype in {gradient.dtype for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        torch._amp_foreach_non_finite_check_and_unscale_(alike, found, one)
    return found


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """Return the loss; if it is not finite, its gradients become NaN. A finite loss does not change.

    The all-reduce of gradients then tells all processes that one of them had a bad loss.
    """
    return loss * (loss.detach() * 0 + 1)


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer changes neither weights nor state if its ``found_inf`` is 1: fused Adam and AdamW.

    Fused SGD does the same, but after a skipped first step it uses an uninitialized momentum.
    """
    return isinstance(optimizer, torch.optim.Adam) and getattr(optimizer, '_step_supports_amp_scaling', False)


class Guarded:
    """Mixin for mmengine's ``OptimWrapper`` that skips steps whose loss or gradients are not finite.

    A skipped step changes no bit of the weights and the optimizer state. Fused Adam and AdamW skip on the device. For
    other optimizers the host reads the flag, which synchronizes, and drops the gradients.

    Attributes:
        nonfinite: () float32, 1 if the last step was skipped; None before the first step.
        loss: last loss of this process, detached.
        grad_norm: () norm of the last step's gradients before clipping; None without clipping.
    """

    nonfinite: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None

    def update_params(
        self, loss: torch.Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None
    ) -> None:
        self.loss, self.grad_norm = loss.detach(), None
        super().update_params(poisoned(loss), step_kwargs, zero_kwargs)

    def step(self, **kwargs) -> None:
        # Check before clipping, since clipping by value makes infinite gradients finite.
        self.nonfinite = any_nonfinite(gradients_of(self.optimizer))
        if skips_on_device(self.optimizer):
            self.optimizer.found_inf = self.nonfinite
            try:
                super().step(**kwargs)
            finally:
                del self.optimizer.found_inf
            return
        if self.nonfinite.item():
            self.optimizer.zero_grad(set_to_none=True)
        super().step(**kwargs)

    def _clip_grad(self) -> None:
        """Clip gradients. ``AsyncLoggingHook`` logs the norm later; mmengine logs it at once, so the host waits."""
        parameters = [p for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        if parameters:
            self.grad_norm = self.clip_func(parameters, **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(Guarded, OptimWrapper):
    """Full precision; see :class:`Guarded`."""


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(Guarded, OptimWrapper):
    """Mixed precision in bfloat16 on any device, without a loss scaler; see :class:`Guarded`.

    mmengine's ``AmpOptimWrapper`` has a loss scaler under bf16 and does not work without an accelerator. For fp16,
    which needs the scaler, use ``GuardedAmpOptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class GuardedAmpOptimWrapper(Guarded, AmpOptimWrapper):
    """Mixed precision in float16 with mmengine's loss scaler, which skips bad steps and lowers its scale.

    Gradients that overflow at a large scale are normal and do not count as ``nonfinite``. A bad loss of any process
    counts, and so do bad gradients at a scale of at most 1. With a constant ``loss_scale`` only bad losses count.
    """

    bad_loss: torch.Tensor | None = None

    def update_params(
        self, loss: torch.Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None
    ) -> None:
        bad, self.grad_norm = (~torch.isfinite(loss.detach())).float(), None
        self.bad_loss = bad if self.bad_loss is None else torch.maximum(self.bad_loss, bad)
        super().update_params(loss, step_kwargs, zero_kwargs)

    def step(self, **kwargs) -> None:
        flag, self.bad_loss = self.bad_loss, None
        dist.all_reduce(flag, 'max')  # gradients cannot tell a bad loss from too large a scale
        before = self.loss_scaler._get_scale_async().clone()
        AmpOptimWrapper.step(self, **kwargs)
        lowered = self.loss_scaler._get_scale_async() < before
        if self._scale_update_param is None:
            flag = torch.maximum(flag, (lowered & (before <= 1)).float())
        self.nonfinite = flag
