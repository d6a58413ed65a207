"""Parameter groups (weight decay, layer-wise learning rate), precision, and steps that are not made if not finite."""

from contextlib import contextmanager

import torch
from mmengine import dist
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

NO_DECAY = ('pos_embed', 'cls_token')
DECAY_OPTIONS = ('decay_positions', 'decay_class_token', 'decay_biases')
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, _InstanceNorm)


def decays(name: str, parameter: nn.Parameter, decay_positions: bool = False, decay_class_token: bool = False,
           decay_biases: bool = False, of_norm: bool = False) -> bool:
    """Whether weight decay applies: not to 1-D parameters, biases, absolute positions and the class token.

    So layer scales (1-D) do not decay, and relative position bias tables (2-D) do, as in the authors' release.

    Args:
        decay_positions: let the absolute positions and the class token decay. The release's segmentation recipe does,
            because its list of exceptions lacks the prefix that the names have there; meant is surely what its
            pretraining and fine-tuning do, and the default here: no decay.
        decay_class_token: let the class token alone decay, as in the pretraining of facebookresearch/mae, where only
            1-D values and biases are exempt (its positions are fixed).
        decay_biases: let the biases decay, but not those of norms, as in detectron2's ViTDet.
        of_norm: whether the parameter is a norm's.
    """
    last = name.rpartition('.')[2]
    if decay_biases and last.endswith('bias') and not of_norm:
        return True
    exempt = last in NO_DECAY and not (decay_positions or (decay_class_token and last == 'cls_token'))
    return parameter.ndim > 1 and last != 'bias' and not exempt


def lr_scale(model: nn.Module, name: str, layer_decay: float) -> float:
    """Factor on a parameter's learning rate: ``layer_decay ** (groups after its own)`` (bootmae.md, section 5)."""
    if layer_decay == 1:
        return 1.0
    backbone = getattr(model, 'backbone', None)
    if not hasattr(backbone, 'get_layer_depth'):
        raise ValueError(f'layer_decay={layer_decay} needs a model whose backbone has get_layer_depth, such as '
                         f'PlainViT or TransferViT, not {type(backbone).__name__}')
    group, num_groups = backbone.get_layer_depth(name, 'backbone.')
    return layer_decay ** (num_groups - 1 - group)


def parameter_table(model: nn.Module, layer_decay: float = 1.0, **decay_options: bool) -> dict[str, tuple[float, bool]]:
    """Learning-rate scale and whether weight decay applies, for every trainable parameter.

    ``decay_options`` are those of :func:`decays`.
    """
    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    return {name: (lr_scale(model, name, layer_decay),
                   decays(name, parameter, of_norm=name.rpartition('.')[0] in norms, **decay_options))
            for name, parameter in model.named_parameters() if parameter.requires_grad}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTOptimWrapperConstructor:
    """Builds an optimiser whose groups follow :func:`parameter_table`; parameters alike share a group.

    The same groups for a classifier, a segmentor and a detector: the model's ``backbone`` tells the group.

    ``paramwise_cfg`` takes ``layer_decay`` (default 1, none) and the options of :func:`decays` (default False) alone.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.layer_decay = paramwise_cfg.pop('layer_decay', 1.0)
        self.decay_options = {key: paramwise_cfg.pop(key) for key in DECAY_OPTIONS if key in paramwise_cfg}
        if paramwise_cfg:
            raise ValueError(f'unknown paramwise_cfg {sorted(paramwise_cfg)}: ViTOptimWrapperConstructor takes '
                             f'layer_decay, {", ".join(DECAY_OPTIONS)} alone')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        lr, weight_decay = self.optimizer_cfg['lr'], self.optimizer_cfg.get('weight_decay', 0.0)
        parameters, groups = dict(model.named_parameters()), {}
        for name, (scale, decay) in parameter_table(model, self.layer_decay, **self.decay_options).items():
            group = groups.setdefault((scale, decay), dict(
                params=[], lr=lr * scale, weight_decay=weight_decay if decay else 0.0))
            group['params'].append(parameters[name])
        optimizer = OPTIMIZERS.build(self.optimizer_cfg | dict(params=list(groups.values())))
        return OPTIM_WRAPPERS.build(dict(type='OptimWrapper') | self.wrapper_cfg | dict(optimizer=optimizer))


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]


def any_nonfinite(gradients: list[torch.Tensor]) -> torch.Tensor:
    """1.0 if any value of the tensors of one device is NaN or infinite, else 0.0; () float32 on that device.

    torch's own check under loss scaling, in one pass and without synchronisation; it multiplies by 1 in place.
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
    """Whether the optimiser leaves weights and state alone if its ``found_inf`` is 1: fused Adam and AdamW.

    Fused SGD does so too, but takes the empty momentum of a skipped first step for a real one afterwards.
    """
    return isinstance(optimizer, torch.optim.Adam) and getattr(optimizer, '_step_supports_amp_scaling', False)


class Guarded:
    """Mixin for mmengine's ``OptimWrapper``: a step whose loss or gradients are not finite changes nothing.

    Weights and the optimiser's state, step counters included, keep every bit. Fused Adam and AdamW skip on the device;
    for other optimisers the flag is read, a synchronisation, and the gradients are dropped.

    Attributes:
        nonfinite: () float32, 1 if the last step was skipped because it was not finite; None before the first one.
        loss: the last loss of this process, detached.
        grad_norm: () of the last step's gradients before they were clipped; None where they are not, or not yet.
    """

    nonfinite: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None

    def update_params(self, loss: torch.Tensor, step_kwargs: dict | None = None,
                      zero_kwargs: dict | None = None) -> None:
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
        """As mmengine's, which logs the norm at once, for which the host would wait; ``LazyInfoHook`` does later."""
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

    def update_params(self, loss: torch.Tensor, step_kwargs: dict | None = None,
                      zero_kwargs: dict | None = None) -> None:
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
