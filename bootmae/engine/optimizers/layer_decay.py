"""Parameter groups: weight decay and layer-wise lr decay."""

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

NO_DECAY = ('pos_embed', 'cls_token')
DECAY_OPTIONS = ('decay_positions', 'decay_class_token', 'decay_biases')
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, _InstanceNorm)


def decays(
    name: str,
    parameter: nn.Parameter,
    decay_positions: bool = False,
    decay_class_token: bool = False,
    decay_biases: bool = False,
    of_norm: bool = False,
) -> bool:
    """Whether weight decay applies: not to 1-D parameters, biases, absolute positions and the class token.

    Layer scales (1-D) do not decay and relative position bias tables (2-D) do, as in the authors' release.

    Args:
        name: name of the parameter.
        parameter: the parameter.
        decay_positions: decay the absolute positions and the class token. The release's segmentation recipe does so,
            because its list of exceptions lacks a prefix of the names. The default, no decay, is that of its
            pretraining and fine-tuning.
        decay_class_token: decay the class token, as in the pretraining of facebookresearch/mae, which exempts only 1-D
            parameters and biases (its positions are fixed).
        decay_biases: decay biases, except those of norms, as in detectron2's ViTDet.
        of_norm: whether the parameter belongs to a norm.
    """
    last = name.rpartition('.')[2]
    if decay_biases and last.endswith('bias') and not of_norm:
        return True
    exempt = last in NO_DECAY and not (decay_positions or (decay_class_token and last == 'cls_token'))
    return parameter.ndim > 1 and last != 'bias' and not exempt


def lr_scale(model: nn.Module, name: str, layer_decay: float) -> float:
    """Return a parameter's learning rate factor, ``layer_decay ** (number of later groups)`` (docs/method.md)."""
    if layer_decay == 1:
        return 1.0
    backbone = getattr(model, 'backbone', None)
    if not hasattr(backbone, 'get_layer_depth'):
        raise ValueError(
            f'layer_decay={layer_decay} needs a model whose backbone has get_layer_depth, such as '
            f'PlainViT or TransferViT, not {type(backbone).__name__}'
        )
    group, num_groups = backbone.get_layer_depth(name, 'backbone.')
    return layer_decay ** (num_groups - 1 - group)


def parameter_table(model: nn.Module, layer_decay: float = 1.0, **decay_options: bool) -> dict[str, tuple[float, bool]]:
    """Return the learning rate factor of every trainable parameter, and whether weight decay applies.

    Args:
        model: the model.
        layer_decay: factor per layer; 1 for none.
        decay_options: options of :func:`decays`.
    """
    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    return {
        name: (
            lr_scale(model, name, layer_decay),
            decays(name, parameter, of_norm=name.rpartition('.')[0] in norms, **decay_options),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTOptimWrapperConstructor:
    """Builds an optimizer with the parameter groups of :func:`parameter_table`.

    It works for classifiers, segmentors and detectors, because the ``backbone`` gives the layer of a parameter.

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper.
        paramwise_cfg: ``layer_decay`` (default 1, none), the options of :func:`decays` (default False), and
            ``separate_encoder`` (default False): the backbone has groups of its own, with ``encoder=True``, which
            ``WarmupCosineLR`` may train later than the rest.
    """

    paramwise_options = ('layer_decay', 'separate_encoder', *DECAY_OPTIONS)

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.layer_decay = paramwise_cfg.pop('layer_decay', 1.0)
        self.separate_encoder = paramwise_cfg.pop('separate_encoder', False)
        self.decay_options = {key: paramwise_cfg.pop(key) for key in DECAY_OPTIONS if key in paramwise_cfg}
        if paramwise_cfg:
            raise ValueError(
                f'unknown paramwise_cfg {sorted(paramwise_cfg)}: ViTOptimWrapperConstructor takes '
                f'only {", ".join(self.paramwise_options)}'
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        lr, weight_decay = self.optimizer_cfg['lr'], self.optimizer_cfg.get('weight_decay', 0.0)
        parameters, groups = dict(model.named_parameters()), {}
        for name, (scale, decay) in parameter_table(model, self.layer_decay, **self.decay_options).items():
            mark = dict(encoder=name.startswith('backbone.')) if self.separate_encoder else {}
            group = groups.setdefault(
                (scale, decay, *mark.values()),
                dict(params=[], lr=lr * scale, weight_decay=weight_decay if decay else 0.0, **mark),
            )
            group['params'].append(parameters[name])
        optimizer = OPTIMIZERS.build(self.optimizer_cfg | dict(params=list(groups.values())))
        return OPTIM_WRAPPERS.build(dict(type='OptimWrapper') | self.wrapper_cfg | dict(optimizer=optimizer))
