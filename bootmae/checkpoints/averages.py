"""Finds the weights in a file: the raw ones that the optimizer trained, and their average (EMA), if it has both."""

from pathlib import Path

import torch

from .keys import State

SOURCES = ('online', 'momentum', 'raw', 'ema')
# Keys of a file, in the order in which they are looked for.
RAW = ('state_dict', 'model', 'module', 'model_state_dict', 'student', 'encoder')
AVERAGED = (
    'ema_state_dict',
    'state_dict_ema',
    'model_ema',
    'model_ema_state_dict',
    'ema',
    'ema_state',
    'ema_model',
    'teacher',
    'target_encoder',
)
WHAT = dict(raw='raw weights', ema='averaged weights')


def places(content: dict) -> dict[str, str]:
    """Keys of a file that hold its ``raw`` and ``ema`` weights. The first place is taken unless asked otherwise.

    mmengine's ``EMAHook`` writes the average as ``state_dict`` and the raw weights as ``ema_state_dict``.
    """
    dicts = [key for key in RAW if isinstance(content.get(key), dict)]
    raw = next((key for key in dicts if _tensors(content[key])), next(iter(dicts), None))
    ema = next((key for key in AVERAGED if raw != key and _tensors(content.get(key))), None)
    if (raw, ema) == ('state_dict', 'ema_state_dict') and 'steps' in content[ema]:
        return dict(ema=raw, raw=ema)
    return {what: key for what, key in (('raw', raw), ('ema', ema)) if key}


def weights_of(content: dict, source: str = 'online') -> State:
    """The weights of a file: below a key of :data:`RAW` or :data:`AVERAGED`, or the file itself.

    Args:
        content: result of :func:`read_checkpoint`.
        source: ``raw`` or ``ema`` of a file with both. With the others it is what the file's own program would load:
            the raw weights, but for mmengine's averages.

    Raises:
        ValueError: if the file does not have these weights.
    """
    found = places(content)
    key = found.get(source) or next(iter(found.values()), None)
    if source in WHAT and source not in found and (found or source == 'ema'):  # a plain state has raw weights alone
        raise ValueError(f'no {WHAT[source]} in this file: use source=online')
    return _tensors(content if key is None else content[key])


def with_weights(content: dict, source: str, path: str | Path) -> dict:
    """The content of a run with the wanted weights as ``state_dict``, where all readers look first.

    Raises:
        ValueError: if the file does not have these weights.
    """
    if source == 'online':
        return content
    try:
        return content | dict(state_dict=weights_of(content, source))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def taken(content: dict, source: str = 'online') -> str:
    """What :func:`weights_of` takes from a file with raw and averaged weights, and how to take the others; else ''."""
    found = places(content)
    if len(found) < 2:
        return ''
    mine = source if source in found else next(iter(found))
    (other,) = set(found) - {mine}
    return (
        f"'{found[mine]}' ({WHAT[mine]}) is taken; --source {other} takes '{found[other]}' ({WHAT[other]}) of this file"
    )


def _tensors(content: object) -> State:
    """The tensors of a dict, without the prefix of a wrapper for parallel training or averaging."""
    if not isinstance(content, dict):
        return {}
    for key in ('state_dict', 'module'):  # an average in a dict of its own, with its decay
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    wrapped = {key: value for key, value in state.items() if key.startswith('module.')}
    if wrapped and set(state) - set(wrapped) <= {'steps', 'n_averaged'}:
        return {key.removeprefix('module.'): value for key, value in wrapped.items()}
    return state
