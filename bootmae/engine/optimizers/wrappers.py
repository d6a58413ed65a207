"""Optimizer wrappers: precision, and steps that are not made if not finite."""

from contextlib import contextmanager

import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]


def any_nonfinite(gradients: list[torch.Tensor]) -> torch.Tensor:
    """1.0 if any value of the tensors of one device is NaN or infinite, else 0.0; () float32 on that device.

    torch's own check under loss scaling, in one pass and without synchronization; it multiplies by 1 in place.
    """
    device = gradients[0].device if gradients else None
    found, one = torch.zeros((), device=device), torch.ones((), device=device)
    for dtype in {gradient.dtype for gradient in gradients}:
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        torch._amp_foreach_non_finite_check_and_unscale_(alike, found, one)
    return found


def poisoned(loss: torch.Tensor) -> torch.Tensor:
    """The loss; if it is not finite, so that its gradients are NaN. A finite one keeps every bit.

    Processes exchange gradients: so all of them learn, without an exchange of its own, that one had a bad loss.
    """
    return loss * (loss.detach() * 0 + 1)


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer leaves weights and state alone if its ``found_inf`` is 1: fused Adam and AdamW.

    Fused SGD does so too, but takes the empty momentum of a skipped first step for a real one afterwards.
    """
    return isinstance(optimizer, torch.optim.Adam) and getattr(optimizer, '_step_supports_amp_scaling', False)


class Guarded:
    """Mixin for mmengine's ``OptimWrapper``: a step whose loss or gradients are not finite changes nothing.

    Weights and the optimizer's state, step counters included, keep every bit. Fused Adam and AdamW skip on the device;
    for other optimizers the flag is read, a synchronization, and the gradients are dropped.

    Attributes:
        nonfinite: () float32, 1 if the last step was skipped because it was not finite; None before the first one.
        loss: the last loss of this process, detached.
        grad_norm: () of the last step's gradients before they were clipped; None where they are not, or not yet.
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
        # Before clipping, which turns an infinite gradient into a finite one if it clips values.
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
        """As mmengine's, which logs the norm at once, so that the host waits; ``AsyncLoggingHook`` logs it later."""
        parameters = [p for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        if parameters:
            self.grad_norm = self.clip_func(parameters, **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(Guarded, OptimWrapper):
    """Full precision; see :class:`Guarded`."""


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(Guarded, OptimWrapper):
    """Mixed precision in bfloat16, without a loss scaler, on any device; see :class:`Guarded`.

    mmengine's ``AmpOptimWrapper`` keeps a loss scaler under bf16 and refuses a machine without accelerator; for fp16,
    which needs the scaler, use that one.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class GuardedAmpOptimWrapper(Guarded, AmpOptimWrapper):
    """Mixed precision in float16 with mmengine's loss scaler, which skips what is not finite and lowers its scale.

    Gradients beyond float16 are part of its work. As not finite (``nonfinite``) count a bad loss, of any process, and
    bad gradients at a scale of at most 1, which cannot have caused them. With a constant ``loss_scale`` only bad losses
    count.
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
        dist.all_reduce(flag, 'max')  # gradients do not tell a bad loss from too large a scale
        before = self.loss_scaler._get_scale_async().clone()
        AmpOptimWrapper.step(self, **kwargs)
        lowered = self.loss_scaler._get_scale_async() < before
        if self._scale_update_param is None:
            flag = torch.maximum(flag, (lowered & (before <= 1)).float())
        self.nonfinite = flag
