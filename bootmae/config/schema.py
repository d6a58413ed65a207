"""What a config may say: the arguments of the classes that it names, and the keys that runner and steps read."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, get_args

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model.averaged_model import BaseAveragedModel, ExponentialMovingAverage, MomentumAnnealingEMA
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner, TestLoop, ValLoop
from mmengine.runner.utils import set_random_seed
from mmengine.utils.dl_utils import set_multi_processing
from mmpretrain.registry import BATCH_AUGMENTS
from torch import compile as torch_compile
from torch.utils.data import DataLoader

from ..data.channels import LoadChannels
from ..models.decoder import TargetAwareDecoder
from ..models.masking import BlockMasking
from .run_defaults import HOOKS, MMENGINE_HOOKS

Path = tuple[str, ...]
Known = Mapping[str, Any]  # annotation of each setting; Parameter.empty if it has none

OURS = (
    *('adapt_channels', 'adopt_statistics', 'bad_images', 'classes', 'convert_statistics', 'image_channels', 'reader'),
    *('reader_device', 'track', 'train_images'),
)
OF_RUNNER = (
    *('activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters'),
    *('model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline'),
)
UNREAD = {'self', 'cfg', 'launcher'}
READ = frozenset({*inspect.signature(Runner.__init__).parameters, *OF_RUNNER, *OURS} - UNREAD)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Registries in which the types below a top-level key are looked up, in this order.
PLACES = {
    'model': ('MODELS', 'TASK_UTILS', 'BATCH_AUGMENTS', 'WEIGHT_INITIALIZERS'),
    'data_preprocessor': ('MODELS', 'BATCH_AUGMENTS', 'TRANSFORMS'),
    'tta_model': ('MODELS',),
    'tta_pipeline': ('TRANSFORMS',),
    'model_wrapper_cfg': ('MODEL_WRAPPERS', 'MODELS'),
    **dict.fromkeys(LOADERS, ('DATASETS', 'TRANSFORMS', 'DATA_SAMPLERS', 'FUNCTIONS', 'TASK_UTILS')),
    **dict.fromkeys(('train_cfg', 'val_cfg', 'test_cfg'), ('LOOPS',)),
    **dict.fromkeys(('val_evaluator', 'test_evaluator'), ('METRICS', 'EVALUATOR')),
    **dict.fromkeys(('default_hooks', 'custom_hooks'), ('HOOKS', 'VISUALIZERS', 'TASK_UTILS')),
    'optim_wrapper': ('OPTIM_WRAPPERS', 'OPTIMIZERS', 'OPTIM_WRAPPER_CONSTRUCTORS'),
    'param_scheduler': ('PARAM_SCHEDULERS',),
    'visualizer': ('VISUALIZERS', 'VISBACKENDS'),
    'log_processor': ('LOG_PROCESSORS',),
}
ALL = tuple(dict.fromkeys(place for places in PLACES.values() for place in places))
ANYWHERE = ('type', '_scope_', '_delete_', 'bg_cls_weight')  # the last is taken by heads of DETR
# Settings that a builder takes out before it calls the class.
OF_BUILDERS = {
    'optim_wrapper': ('constructor', 'paramwise_cfg'),
    'param_scheduler': ('convert_to_iter_based', 'by_epoch'),
    'train_cfg': ('by_epoch',),
    'default_hooks': ('priority',),
    'custom_hooks': ('priority',),
}
OF_PARENTS = {'override': ('name',), 'policies': ('magnitude_key', 'magnitude_range')}
OF_LOADERS = ('dataset', 'num_batch_per_epoch', 'sampler', 'batch_sampler', 'worker_init_fn', 'collate_fn')
# Parts of torch and mmcv, such as norms, get their settings from a builder that has some of its own.
FOREIGN = ('torch.nn', 'mmcv.', 'mmengine.utils.')
OF_OTHERS = ('Albu', 'Albumentations')  # what they contain are classes of albumentations
NOT_REGISTERED = ('nms', 'roi_layer')  # their type is a function of mmcv.ops
OF_CONSTRUCTOR = (  # paramwise_cfg of mmengine
    *('bias_decay_mult', 'bias_lr_mult', 'bypass_duplicate', 'custom_keys', 'dcn_offset_lr_mult', 'dwconv_decay_mult'),
    *('flat_decay_mult', 'norm_decay_mult'),
)


# Where a class that has no parent passes its further arguments on.
PASSED_ON = {
    CheckpointHook: [Runner.save_checkpoint],
    EMAHook: [BaseAveragedModel.__init__, ExponentialMovingAverage.__init__, MomentumAnnealingEMA.__init__],
}


def any_type(*names: str) -> Known:
    return dict.fromkeys(names, inspect.Parameter.empty)


@cache
def arguments(target: Callable, registered: str | None = None) -> Known | None:
    """The arguments of a class or function and their annotations; None if it takes any.

    A class that passes ``**kwargs`` on to its parent also has the arguments of the parent.
    """
    if str(getattr(target, '__module__', '')).startswith(FOREIGN) and registered == 'MODELS':
        return None
    found: dict[str, Any] = {}
    functions = (
        [(base, base.__dict__['__init__']) for base in target.__mro__ if '__init__' in base.__dict__]
        if inspect.isclass(target)
        else [(target, target)]
    )
    for owner, function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.annotation)
        rest = next((p.name for p in parameters if p.kind == p.VAR_KEYWORD), None)
        if rest is None:
            return found
        if not _goes_to_parent(owner, function, rest):
            break
        for text in inspect.unwrap(function).__code__.co_consts:  # kwargs.pop('name')
            if isinstance(text, str) and text.isidentifier():
                found.setdefault(text, inspect.Parameter.empty)
    others = [other for base in getattr(target, '__mro__', ()) for other in PASSED_ON.get(base, ())]
    for other in others:
        found = {**any_type(*inspect.signature(other).parameters), **found}
    return found if others else None


def _goes_to_parent(owner: Callable, function: Callable, rest: str) -> bool:
    """Whether an ``__init__`` passes its further arguments on to the next class, and to no other."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return False
    calls = re.findall(r'super\(\s*(\w*)[^)]*\)\.__init__\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)', source)
    return any(name in ('', owner.__name__) and f'**{rest}' in given for name, given in calls)


def registry_of(place: str) -> Registry:
    """The root registry of this name."""
    return BATCH_AUGMENTS if place == 'BATCH_AUGMENTS' else getattr(registries, place)


def find_class(name: str | Callable, scope: str, places: tuple[str, ...]) -> tuple[Callable, str] | None:
    """The class of a ``type`` and the name of its registry; None if no registry has it."""
    try:
        return _find(name, scope, places)
    except (KeyError, TypeError):  # TypeError: not hashable, so no type
        return None


@cache
def _find(name: str | Callable, scope: str, places: tuple[str, ...]) -> tuple[Callable, str]:
    """As :func:`find_class`, with a KeyError, which is not cached: the class may be registered later."""
    if not isinstance(name, str):
        return name, ''
    for place in places:
        root = registry_of(place)
        for key in (name,) if '.' in name else (f'{scope}.{name}', name):
            with suppress(RuntimeError, ImportError):
                if (found := root.get(key)) is not None:
                    return found, place
    raise KeyError(name)


def names_of(scope: str, places: tuple[str, ...]) -> list[str]:
    """All names in registries, as a scope sees them."""
    found: list[str] = []
    for place in places:
        root = registry_of(place)
        for registry in (root, root.children.get(scope)):
            found += registry.module_dict if registry is not None else ()
    return found


def places_of(path: Path) -> tuple[str, ...]:
    """The registries for the type of the settings at a path."""
    first = PLACES.get(path[0], ())
    if path[-1] in ('init_cfg', 'override') or path[-2:-1] == ('init_cfg',):
        first = ('WEIGHT_INITIALIZERS', *first)
    return tuple(dict.fromkeys((*first, *ALL))) if first else ()


def class_of(node: Mapping, path: Path, cfg: Config) -> tuple[Callable, str] | None:
    """The class that is built from settings with a ``type``, see :func:`find_class`."""
    scope, kind = node.get('_scope_') or cfg.get('default_scope'), node['type']
    if scope is None:  # part of a config, whose names mean one thing in mmseg and another in mmdet
        return None
    if path[0] == 'default_hooks' and kind in ('CheckpointHook', CheckpointHook):
        kind = 'SafeCheckpointHook'  # replaces it, see add_hooks
    return find_class(kind, scope, places_of(path))


def known_settings(node: Mapping, path: Path, cfg: Config) -> Known | None:
    """The settings that the group at a path may have, and their annotations; None if that is not known."""
    if 'type' in node:
        found = class_of(node, path, cfg)
        known = arguments(*found) if found else None
    else:
        known = section(path, cfg)
    if known is None:
        return None
    builders = OF_BUILDERS.get(path[0], ()) if len(path) < 3 else ()
    builders += next((names for name, names in OF_PARENTS.items() if name in path), ())
    return {**any_type(*ANYWHERE, *builders), **known}


def section(path: Path, cfg: Config) -> Known | None:
    """The settings of a group without a ``type``."""
    top, depth = path[0], len(path)
    if depth == 1 and top in LOADERS:
        return {**arguments(DataLoader), **any_type(*OF_LOADERS)}
    if depth == 1 and top in DEFAULTS:
        return DEFAULTS[top](cfg)
    if depth == 2 and top == 'default_hooks':
        kind = {**MMENGINE_HOOKS, **HOOKS, 'checkpoint': 'SafeCheckpointHook'}.get(path[1])
        found = kind and find_class(kind, 'mmengine', PLACES[top])
        return arguments(*found) if found else None
    if path == ('optim_wrapper', 'paramwise_cfg'):
        name = cfg.optim_wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
        found = find_class(name, cfg.get('default_scope') or 'mmpretrain', ('OPTIM_WRAPPER_CONSTRUCTORS',))
        if found and found[0] is DefaultOptimWrapperConstructor:
            return any_type(*OF_CONSTRUCTOR)
        options = getattr(found[0], 'paramwise_options', None) if found else None
        return options and any_type(*options)
    if path == ('env_cfg', 'mp_cfg'):
        return arguments(set_multi_processing)
    if depth == 2 and top == 'model' and cfg.model.get('type') == 'BootMAE':
        return {
            'masking': arguments(BlockMasking),
            'pixel_decoder': {**arguments(TargetAwareDecoder), **any_type('tap')},
            'feature_decoder': {**arguments(TargetAwareDecoder), **any_type('tap')},
        }.get(path[1])
    return None


def _train_loop(cfg: Config) -> Known:
    loop = EpochBasedTrainLoop if cfg.train_cfg.get('by_epoch', True) else IterBasedTrainLoop
    return arguments(loop)


def _optim_wrapper(cfg: Config) -> Known:
    return arguments(*find_class('OptimWrapper', 'mmengine', ('OPTIM_WRAPPERS',)))


DEFAULTS: dict[str, Callable[[Config], Known]] = {
    'train_cfg': _train_loop,
    'val_cfg': lambda cfg: arguments(ValLoop),
    'test_cfg': lambda cfg: arguments(TestLoop),
    'optim_wrapper': _optim_wrapper,
    'log_processor': lambda cfg: arguments(LogProcessor),
    'randomness': lambda cfg: arguments(set_random_seed),
    'auto_scale_lr': lambda cfg: any_type('base_batch_size', 'enable'),
    'image_channels': lambda cfg: {**arguments(LoadChannels), **any_type('mean', 'std')},
    'custom_imports': lambda cfg: any_type('imports', 'allow_failed_imports'),
    'compile': lambda cfg: {**arguments(torch_compile), **any_type('scope')},
    'env_cfg': lambda cfg: any_type('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
}


def groups(node: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All groups of settings below a node that are read, with their paths."""
    if isinstance(node, dict | Config):
        if path:
            yield path, node
        for key, value in node.items():
            if path or key in READ:
                if 'type' in node and node['type'] in OF_OTHERS:
                    continue
                yield from groups(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from groups(value, (*path, str(number)))


def kinds(annotation: Any) -> set[str]:
    """The types that an annotation allows, by name, without those of elements; empty if there is none."""
    if annotation is inspect.Parameter.empty:
        return set()
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    before = ''
    while text != before:  # from the inside out
        before = text
        text = re.sub(r'(\w+)\[([^\[\]]*)\]', lambda m: m[2] if m[1] in ('Optional', 'Union') else m[1], text)
    return {word.rpartition('.')[2] for word in re.findall(r'[\w.]+', text)}
