"""Identity of a run: its settings, seed and start weights. A work directory holds the checkpoints of one run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Parts of a config that determine the weights of a run. Batch and length are among the facts of the run.
PARTS = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'load_from',
)
LOADER = ('dataset', 'sampler', 'batch_sampler')
# Precision, speed, memory and evaluation may change when a run resumes.
FREE = ('fp32_decoder', 'with_cp', 'test_cfg', 'fused', 'foreach', 'capturable')
WRAPPER_FREE = ('type', 'accumulative_counts', 'dtype', 'loss_scale')
MONITORS = ('OnlineProbeHook', 'ReconstructionHook', 'CollapseMonitorHook', 'ClassResultsHook')
SHOWN = 4  # differences in a message
Differences = tuple[list[str], list[str]]  # in origin (seed and start weights), and in facts and settings


@dataclass(frozen=True)
class RunIdentity:
    """What makes a run the run that it is.

    Attributes:
        settings: settings that determine its weights, by dotted key; see :func:`settings_of`.
        seed: its seed; None if each start draws one.
        init: file of the encoder that it starts from; empty for none.
        init_hash: hash of that encoder.
        facts: batch and length; see ``resume_signature``.
    """

    settings: dict[str, Any]
    seed: int | None = None
    init: str = ''
    init_hash: str = ''
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint stores in ``meta.identity``, beside its facts; mmengine stores the seed."""
        return dict(settings=self.settings, init=self.init, init_hash=self.init_hash)

    def with_start_of(self, meta: Mapping) -> 'RunIdentity':
        """Return this identity with the start weights of a checkpoint, if it has none."""
        record = meta.get('identity') or {}
        return self if self.init_hash else replace(self, **{key: record.get(key, '') for key in ('init', 'init_hash')})

    def seed_difference(self, meta: Mapping) -> list[str]:
        """The difference in seed from the run that wrote a checkpoint with this ``meta``, if there is one."""
        theirs = meta.get('seed')
        return [] if None in (self.seed, theirs) or self.seed == theirs else [f'seed {theirs}, here {self.seed}']

    def init_difference(self, meta: Mapping) -> list[str]:
        """The difference in start weights, if there is one."""
        record = meta.get('identity') or meta.get('bootmae') or {}
        theirs = record.get('init_hash', '')
        if theirs == self.init_hash or not (theirs or is_recorded(meta)):
            return []
        return [f'start weights {_weights(record.get("init", ""), theirs)}, here {_weights(self.init, self.init_hash)}']

    def setting_differences(self, meta: Mapping) -> list[str]:
        """Differences in settings from the run that wrote a checkpoint; none if it does not record them."""
        theirs = (meta.get('identity') or {}).get('settings')
        if theirs is None:
            return []
        keys = [*theirs, *(key for key in self.settings if key not in theirs)]
        pairs = [(key, theirs.get(key, '(not set)'), self.settings.get(key, '(not set)')) for key in keys]
        return [f'{key} {_text(a)}, here {_text(b)}' for key, a, b in pairs if a != b]


def differences(meta: Mapping, ours: RunIdentity | None, facts: Mapping[str, Any]) -> Differences:
    """Compare the run that wrote a checkpoint with this ``meta`` with another run.

    Args:
        meta: what older versions did not record is not compared.
        ours: identity of the other run; None compares only the facts.
        facts: facts of the other run.

    Returns:
        The differences in origin, and those in facts and settings.
    """
    found = fact_differences(meta, facts)
    if ours is None:
        return [], found
    settings = [text for text in ours.setting_differences(meta) if not any(text.endswith(f'.{fact}') for fact in found)]
    seed, init = ours.seed_difference(meta), ours.init_difference(meta)
    if ours.init_hash:
        return seed + init, found + settings
    return seed, init + found + settings  # a run that resumes may lack the file that it started from


def is_recorded(meta: Mapping) -> bool:
    """Whether a checkpoint records the identity of its run; older versions did not."""
    return 'identity' in meta


def is_comparable(meta: Mapping) -> bool:
    """Whether a checkpoint records anything to compare runs by."""
    return is_recorded(meta) or bool((meta.get('bootmae') or {}).get('run'))


def key_of(meta: Mapping) -> str:
    """Return a text that is equal for checkpoints of one run, from what they record."""
    record = meta.get('identity') or {}
    facts = meta.get('bootmae') or {}
    own = (record['settings'], record['init_hash']) if record else (facts.get('run'), facts.get('init_hash'))
    return json.dumps([meta.get('seed'), own], sort_keys=True, default=str)


def fact_differences(meta: Mapping, ours: Mapping[str, Any]) -> list[str]:
    """Differences in batch, data set size, optimizer and length; facts that are not recorded are not compared."""
    theirs = (meta.get('identity') or {}).get('facts') or (meta.get('bootmae') or {}).get('run', {})
    return [
        f'{name} {theirs[name]!r}, here {value!r}' for name, value in ours.items() if theirs.get(name, value) != value
    ]


def settings_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that determine the weights, by dotted key, as plain types.

    Call it before the config is adapted to the number of processes. Names and folders of the run, logging, hooks that
    only watch, workers, compilation, precision and evaluation are left out, and so is a checkpoint to resume from.
    """
    parts = {name: cfg[name] for name in PARTS if cfg.get(name) is not None}
    if cfg.get('resume'):
        parts.pop('load_from', None)
    loader = parts.get('train_dataloader') or {}
    parts['train_dataloader'] = {name: loader[name] for name in LOADER if loader.get(name) is not None}
    wrapper = parts.get('optim_wrapper') or {}
    parts['optim_wrapper'] = {name: value for name, value in wrapper.items() if name not in WRAPPER_FREE}
    parts['custom_hooks'] = [hook for hook in parts.get('custom_hooks', ()) if hook.get('type') not in MONITORS]
    return dict(_flat(json.loads(json.dumps(parts, default=str))))


def _flat(value: Any, key: str = '') -> list[tuple[str, Any]]:
    nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
    if not nested:
        return [(key, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    kept = [(f'{key}.{name}' if key else str(name), item) for name, item in items if name not in FREE]
    return [pair for name, item in kept for pair in _flat(item, name)]


def _text(value: Any) -> str:
    text = value if value == '(not set)' else repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _weights(path: str, digest: str) -> str:
    return f'{path} [{digest}]' if digest else 'none'


def shown(differences: list[str]) -> str:
    """Join differences for a message."""
    more = f'; and {len(differences) - SHOWN} more' if len(differences) > SHOWN else ''
    return '; '.join(differences[:SHOWN]) + more
