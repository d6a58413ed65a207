"""Parameter groups: weight decay and layer-wise learning rates."""

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

NO_DECAY = ('pos_embed', 'cls_token')


def decays(name: str, parameter: nn.Parameter, decay_positions: bool = False) -> bool:
    """Whether weight decay applies: not to 1-D parameters, biases, absolute positions and the class token.

    So layer scales (1-D) do not decay, and relative position bias tables (2-D) do, as in the authors' release.

    Args:
        decay_positions: let the absolute positions and the class token decay. The release's segmentation recipe does,
            because its list of exceptions lacks the prefix that the names have there; meant is surely what its
            pretraining and fine-tuning do, and the default here: no decay.
    """
    last = name.rpartition('.')[2]
    return parameter.ndim > 1 and last != 'bias' and (decay_positions or last not in NO_DECAY)


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


def parameter_table(model: nn.Module, layer_decay: float = 1.0,
                    decay_positions: bool = False) -> dict[str, tuple[float, bool]]:
    """Learning-rate scale and whether weight decay applies, for every trainable parameter."""
    return {name: (lr_scale(model, name, layer_decay), decays(name, parameter, decay_positions))
            for name, parameter in model.named_parameters() if parameter.requires_grad}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ViTOptimWrapperConstructor:
    """Builds an optimiser whose groups follow :func:`parameter_table`; parameters alike share a group.

    The same groups for a classifier, a segmentor and a detector: the model's ``backbone`` tells the group.

    ``paramwise_cfg`` takes ``layer_decay`` (default 1, none) and ``decay_positions`` (default False, see
    :func:`decays`) alone.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        paramwise_cfg = dict(paramwise_cfg or {})
        self.layer_decay = paramwise_cfg.pop('layer_decay', 1.0)
        self.decay_positions = paramwise_cfg.pop('decay_positions', False)
        if paramwise_cfg:
            raise ValueError(f'unknown paramwise_cfg {sorted(paramwise_cfg)}: ViTOptimWrapperConstructor takes '
                             'layer_decay and decay_positions alone')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        lr, weight_decay = self.optimizer_cfg['lr'], self.optimizer_cfg.get('weight_decay', 0.0)
        parameters, groups = dict(model.named_parameters()), {}
        for name, (scale, decay) in parameter_table(model, self.layer_decay, self.decay_positions).items():
            group = groups.setdefault((scale, decay), dict(
                params=[], lr=lr * scale, weight_decay=weight_decay if decay else 0.0))
            group['params'].append(parameters[name])
        optimizer = OPTIMIZERS.build(self.optimizer_cfg | dict(params=list(groups.values())))
        return OPTIM_WRAPPERS.build(dict(type='OptimWrapper') | self.wrapper_cfg | dict(optimizer=optimizer))
