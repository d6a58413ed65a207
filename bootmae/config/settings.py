"""Applies options to a config, and checks all settings against what is known of them; see schema.py."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config

from .options import OptionText, parse_value
from .run_defaults import HOOKS, MMENGINE_HOOKS
from .schema import ANYWHERE, NOT_REGISTERED, PLACES, READ, class_of, groups, kinds, known_settings, names_of, places_of

FREE = {'Any', 'Callable', 'Literal', 'object'}  # annotations that may allow a text
SPOKEN = ('yes', 'no', 'on', 'off')
SHOWN = 3
SHORT = 6
GROUPS = (
    *('model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg'),
    *('test_cfg', 'optim_wrapper', 'default_hooks', 'visualizer', 'log_processor', 'env_cfg', 'randomness'),
    *('auto_scale_lr', 'image_channels'),
)
# Classes of these packages are registered by name, except those of modules that bootmae/registry.py does not import.
PACKAGES = ('bootmae', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'torch')
ON_DEMAND = ('bootmae.data.scene_datasets', 'bootmae.engine.hooks.compile', 'bootmae.evaluation.')
CLOSE = 0.75  # similarity of a name that is suggested in place of an unknown one


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Change a config by options, and check that each of them has an effect.

    Args:
        cfg: Changed in place.
        options: Values by dotted key; texts of the command line are interpreted.

    Raises:
        ValueError: A key that nothing reads or that leads nowhere, or a value that its setting cannot have.
    """
    wrong = [message for key in options if (message := _without_effect(cfg, key, options[key]))]
    if wrong:
        raise ValueError('\n'.join(wrong))
    values = {}
    for key, value in options.items():
        *parents, last = key.split('.')
        group = _group_at(cfg, parents, key)
        current = _item(group, last, key)
        known = known_settings(group, tuple(parents), cfg) if parents and isinstance(group, dict) else {}
        if known is None and last not in group and (near := get_close_matches(last, group, 1, CLOSE)):
            raise ValueError(f'{key}={value}: nothing is called {last!r} there; is {near[0]} meant?')
        allowed = kinds((known or {}).get(last, inspect.Parameter.empty))
        value = _interpreted(cfg, key, value, current, allowed) if isinstance(value, OptionText) else value
        if isinstance(current, dict) and isinstance(value, str | int | float) and not allowed & {'str', 'bool'}:
            raise ValueError(f'{key}={value}: in {cfg.filename} it is a group of settings; give {key}.NAME=VALUE')
        if isinstance(value, dict) and current is not None and not isinstance(current, dict | list):
            value = dict(value, _delete_=True)  # mmengine merges it into the present value, unless told to replace it
        values[key] = dict(value) if isinstance(value, dict) else value  # merging takes _delete_ out
    cfg.merge_from_dict(values)


def _group_at(cfg: Config, parents: Sequence[str], key: str) -> Any:
    """The group of settings that holds the last part of a key; empty if it does not exist yet."""
    group: Any = cfg
    for depth, part in enumerate(parents, 1):
        group = _item(group, part, key)
        if group is None and _has(cfg, parents[:depth]):
            raise ValueError(f'{key}: {".".join(parents[:depth])} is None in {cfg.filename}, so it has no settings')
        if group is None:
            return {}
        if not isinstance(group, dict | list):
            raise ValueError(
                f'{key}: {".".join(parents[:depth])} is {group!r} in {cfg.filename}, not a group of settings'
            )
    return group


def _item(group: Any, part: str, key: str) -> Any:
    if not isinstance(group, list):
        return group.get(part)
    if not (part.isdecimal() and int(part) < len(group)):
        raise ValueError(f'{key}: {part} is no item of a list of {len(group)}; items are counted from 0')
    return group[int(part)]


def _has(cfg: Config, parts: Sequence[str]) -> bool:
    group: Any = cfg
    for part in parts[:-1]:
        group = group[int(part)] if isinstance(group, list) else group[part]
    return isinstance(group, list) or parts[-1] in group


def _interpreted(cfg: Config, key: str, text: OptionText, current: Any, allowed: set[str]) -> Any:
    """The value of a text, as its setting needs it.

    Args:
        cfg: The config.
        key: Dotted key of the setting.
        text: Its value as written.
        current: Its value in the config.
        allowed: The types that its annotation allows, if it has one.

    Raises:
        ValueError: The setting holds a number or a truth value, and the text is neither.
    """
    holds_text = isinstance(current, str) if not allowed else 'str' in allowed
    wants_list = (
        key == 'classes'
        or isinstance(current, list | tuple)
        or bool(allowed & {'Sequence', 'list', 'List', 'tuple', 'Tuple'})
    )
    value = parse_value(text, holds_text and not allowed & {'int', 'float'}, wants_list)
    if text == '' and not holds_text:
        raise ValueError(f'{key}= has no value; give {key}=None to unset it, or {key}="\'\'" for an empty text')
    if not isinstance(value, str) or 'str' in allowed:
        return value
    truth = allowed <= {'bool', 'None'} if allowed else isinstance(current, bool) and value.lower() in SPOKEN
    number = (
        bool(allowed & {'int', 'float'}) and not allowed & FREE
        if allowed
        else isinstance(current, int | float) and not isinstance(current, bool)
    )
    if truth or number:
        wanted = 'True or False' if truth or isinstance(current, bool) else 'a number'
        here = '' if current is None else f' (in {cfg.filename} it is {current!r})'
        raise ValueError(f'{key}={value}: give {wanted}{here}')
    return value


def _without_effect(cfg: Config, key: str, value: Any) -> str:
    """What is wrong with an option that nothing reads; empty if something does."""
    top, _, rest = key.partition('.')
    if top not in READ:
        return f'{key}={value} has no effect: {_reason(cfg, top)}; {_hint(cfg, key)}'
    if top == 'default_hooks' and rest and '.' not in rest and value in (None, 'None'):
        names = {*MMENGINE_HOOKS, *HOOKS, *(cfg.get('default_hooks') or {})}
        if rest not in names:
            return f'{key}=None has no effect: there is no hook {rest!r}; {_nearest(rest, names)}'
    return ''


def _reason(cfg: Config, top: str) -> str:
    if top in cfg:
        return f'{top} is a variable of {cfg.filename}, which used it before options apply'
    return f'nothing reads {top!r}'


def _hint(cfg: Config, key: str) -> str:
    """The settings that were meant by a key that nothing reads."""
    top, _, rest = key.partition('.')
    paths = list(_paths(cfg))
    meant = [path for path in paths if f'.{path}'.endswith(f'.{key}')]
    if not meant and top in cfg and isinstance(cfg[top], dict | list):
        meant = [f'{path}.{rest}' if rest else path for path in paths if _value(cfg, path) == cfg[top]]
    if not meant and (near := get_close_matches(top, READ, 1, CLOSE)):
        meant = [f'{near[0]}.{rest}' if rest else near[0]]
    if not meant and (near := get_close_matches(top, {path.rpartition('.')[2] for path in paths}, 1, CLOSE)):
        meant = [path for path in paths if path.rpartition('.')[2] == near[0]]
    if meant:
        return f'set {", ".join(meant[:SHOWN])}{", ..." if len(meant) > SHOWN else ""}'
    if key in ('data', 'data_root', 'roots', 'images'):
        return 'give the images by --data PATH'
    return f'options change {", ".join(sorted(READ.intersection(cfg)))}'


def _paths(cfg: Config) -> Iterator[str]:
    """The dotted keys of all settings that are read."""
    for path, group in groups(cfg):
        for key in group:
            yield '.'.join((*path, key))
    yield from (key for key in cfg if key in READ)
    if 'seed' not in (cfg.get('randomness') or {}):
        yield 'randomness.seed'


def _value(cfg: Config, path: str) -> Any:
    group: Any = cfg
    for part in path.split('.'):
        group = group[int(part)] if isinstance(group, list | tuple) else group.get(part)
    return group


def check_settings(cfg: Config) -> None:
    """Check the name of every setting that is read, and every ``type``.

    Variables at the top level of a config file are free, since configs compute with them.

    Raises:
        ValueError: An unknown setting or type; names all of them, each with the nearest known one.
    """
    wrong = list(_wrong_kinds(cfg))
    for path, group in groups(cfg) if not wrong else ():
        where = '.'.join(path)
        if 'type' in group and (message := _unknown_type(group, path, cfg)):
            wrong.append(f'{where}.{message}')
            continue
        if len(path) == 2 and path[0] == 'default_hooks' and 'type' not in group and path[1] not in HOOKS:
            if path[1] not in MMENGINE_HOOKS:
                wrong.append(f'{where} has no type; {_nearest(path[1], {*MMENGINE_HOOKS, *HOOKS})}')
            continue
        known = known_settings(group, path, cfg)
        if known is None:
            continue
        taker = f'of {group["type"]}' if isinstance(group.get('type'), str) else 'there'
        for key in group:
            if key not in known:
                wrong.append(f'{where}.{key}={group[key]!r}: no such setting {taker}; {_nearest(key, known)}')
    if wrong:
        raise ValueError('\n'.join([f'{cfg.filename}: {wrong[0]}', *wrong[1:]]))


def name_types(cfg: Config) -> None:
    """Replace each ``type`` that is a class, or a name with a scope, by the plain name if that means the same class.

    What reads a config compares plain names. Classes of modules that are imported on demand, or of the user, stay as
    they are: a dumped config would not import them by a plain name.
    """
    for path, group in groups(cfg):
        kind = group.get('type')
        if isinstance(kind, str):
            scope, _, name = kind.rpartition('.')
            known = scope in PACKAGES
        else:
            module, name = getattr(kind, '__module__', ''), getattr(kind, '__name__', '')
            known = module.partition('.')[0] in PACKAGES and not module.startswith(ON_DEMAND)
        if not known or not (meant := class_of(group, path, cfg)):
            continue
        plain = class_of({**group, 'type': name}, path, cfg)
        if plain and plain[0] is meant[0]:
            group['type'] = name


def _wrong_kinds(cfg: Config) -> Iterator[str]:
    """Top-level settings that are no group of settings, or no list of groups, where they have to be."""
    for name in GROUPS:
        if not isinstance(cfg.get(name), dict | None):
            yield f'{name}={cfg[name]!r}: give a dict of settings'
        elif name.endswith('_dataloader') and cfg.get(name) and not isinstance(cfg[name].get('dataset'), dict):
            yield f'{name}.dataset={cfg[name].get("dataset")!r}: give a dict of settings'
    for name in ('custom_hooks', 'val_evaluator', 'test_evaluator', 'param_scheduler'):
        found = cfg.get(name)
        several = found if isinstance(found, list | tuple) else [found]
        if (name == 'custom_hooks' and not isinstance(found, list | tuple | None)) or not all(
            isinstance(each, dict | None) for each in several
        ):
            yield f'{name}={found!r}: give {"a list of dicts" if name == "custom_hooks" else "a dict of settings"}'


def _unknown_type(group: Mapping, path: tuple[str, ...], cfg: Config) -> str:
    """What is wrong with a ``type`` that no registry has; empty if it is known or may be meant for a builder."""
    kind, places = group['type'], places_of(path)
    if (
        'default_scope' not in cfg
        or not places
        or path[-1] in NOT_REGISTERED
        or not isinstance(kind, str)
        or class_of(group, path, cfg)
    ):
        return ''
    scope, _, name = kind.rpartition('.')
    near = get_close_matches(name, names_of(scope or cfg.get('default_scope') or '', PLACES[path[0]]), 1)
    if path[0] == 'model' and len(path) > 2 and (not near or len(name) < SHORT):
        return ''  # a word that a class of the model interprets, such as 'conv'
    return f'type={kind!r}: no class of this name is registered' + (
        f'; is {near[0]} meant?' if near else ': correct it, or list its module in custom_imports'
    )


def _nearest(name: str, known: Any) -> str:
    names = [other for other in known if other not in (*ANYWHERE, 'self')]
    near = get_close_matches(name, names, 1)
    return f'is {near[0]} meant?' if near else f'known are {", ".join(sorted(names))}'
