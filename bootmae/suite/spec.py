"""What a suite file says: methods, seeds, pretrainings and tasks, checked before anything runs.

    title: BootMAE and MAE, ViT-B/16
    methods: [untrained, mae, bootmae]      # {method} in configs is replaced by these
    seeds: [0, 1, 2]
    pretrain: configs/pretrain/{method}_vitb.py
    tasks:
      finetune: configs/cls/{method}_vitb_finetune.py

All keys are in docs/suite.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..results.provenance import REPOSITORY
from ..results.rows import MEASURED

UNTRAINED = 'untrained'
KINDS = ('knn', 'frozen', 'linear', 'finetune', 'segmentation', 'detection')
FROZEN_KINDS = ('knn', 'frozen')  # judged by tools/knn.py, without training
PRETRAIN = 'pretrain'  # first word of the names of all pretrainings
SUITE_KEYS = ('title', 'label', 'methods', 'seeds', 'gpus', 'pretrain', 'tasks', 'notes', 'sizes')
METHOD_KEYS = ('weights', 'configs', 'source', 'options')
TRAINING_KEYS = ('config', 'options', 'gpus')
TASK_KEYS = (*TRAINING_KEYS, 'kind', 'from', 'data', 'labels', 'blocks', 'test', 'tta')


@dataclass(frozen=True)
class Method:
    """How an encoder comes about.

    Attributes:
        name: in result rows.
        configs: what replaces ``{method}`` in the names of configs.
        weights: file or ``timm:NAME`` to take instead of pretraining, may hold ``{seed}``; None: pretrained here, or
            untrained.
        source: which encoder of a BootMAE file is judged, ``online`` or ``momentum``.
        options: config values of its pretrainings, over those that the pretrainings have themselves.
    """

    name: str
    configs: str
    weights: str | None = None
    source: str = 'online'
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def pretrained(self) -> bool:
        """Whether the suite pretrains it."""
        return self.weights is None and self.name != UNTRAINED


@dataclass(frozen=True)
class Training:
    """A pretraining: ``config`` may hold ``{method}``, values of ``options`` (as of ``--cfg-options``) ``{seed}``."""

    name: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    gpus: int = 1


@dataclass(frozen=True)
class Task(Training):
    """How encoders are judged.

    Attributes:
        kind: one of :data:`KINDS`.
        origin: the pretraining whose encoders it takes (key ``from``); None where there is no pretraining.
        data: name of the data in the rows; None: from the config.
        labels: of ``knn`` and ``frozen``: amounts of labeled images per class, or ``all``. Of others: how the rows
            call the amount that the config trains on.
        blocks: of ``knn`` and ``frozen``: those after which features are judged, or ``all``; empty: as the config says.
        test: whether a trained model is judged on the config's test data, by ``tools/test.py``; else its last
            validation counts, and the two must be the same data.
        tta: whether a trained segmentor is tested with several scales and flip as well.
    """

    kind: str = ''
    origin: str | None = None
    data: str | None = None
    labels: tuple[str, ...] = ('all',)
    blocks: tuple[str, ...] = ()
    test: bool = False
    tta: bool = False


@dataclass(frozen=True)
class Suite:
    """A suite file, read and checked."""

    path: Path
    size: str | None
    title: str
    label: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    pretrainings: dict[str, Training]
    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()


def load_suite(path: str | Path, size: str | None = None) -> Suite:
    """Read a suite file.

    Args:
        path: a YAML file.
        size: name of one of its ``sizes``, which is merged over it.

    Raises:
        FileNotFoundError: if it is not there, or a config that it names is not.
        ValueError: for what cannot be meant; the message names file, key and remedy.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob('*.y*ml')) if path.parent.is_dir() else []
        raise FileNotFoundError(f'no suite file {path}: {"there are " + ", ".join(near) if near else "see suites/"}')
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise ValueError(f'{path} is not YAML: {error}') from None
    return _Reader(path).suite(content, size)


def merge(base: Mapping, over: Mapping) -> dict:
    """``base`` with the values of ``over``; mappings are merged, all else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


class _Reader:
    """Turns the mapping of one file into a :class:`Suite`."""

    def __init__(self, path: Path):
        self.path = path

    def fail(self, key: str, problem: str) -> ValueError:
        return ValueError(f'{self.path}, {key}: {problem}')

    def mapping(self, value: Any, key: str, known: tuple[str, ...]) -> dict:
        """A mapping with known keys only."""
        if not isinstance(value, Mapping):
            raise self.fail(key, f'{value!r} is not a mapping of {", ".join(known)}')
        for name in value:
            if name not in known:
                near = get_close_matches(str(name), known, 1)
                raise self.fail(
                    f'{key}.{name}' if key else str(name),
                    'unknown key' + (f'; is {near[0]} meant?' if near else f'; known are {", ".join(known)}'),
                )
        return dict(value)

    def suite(self, content: Any, size: str | None) -> Suite:
        content = self.mapping(content, '', SUITE_KEYS)
        sizes = content.pop('sizes', None) or {}
        if size is not None:
            if size not in sizes:
                raise self.fail('sizes', f'there is no size {size!r}; there are {", ".join(sizes) or "none"}')
            content = merge(content, self.mapping(sizes[size], f'sizes.{size}', SUITE_KEYS[:-1]))
        if not content.get('methods'):
            raise self.fail('methods', 'is missing')
        label = content.get('label', MEASURED[0])
        if label not in MEASURED:
            raise self.fail('label', f'{label!r} is none of {", ".join(MEASURED)}')
        gpus = self.count(content.get('gpus', 1), 'gpus')
        methods = self.methods(content['methods'])
        pretrainings = self.pretrainings(content.get('pretrain'), gpus)
        if not pretrainings and any(method.pretrained for method in methods):
            raise self.fail('pretrain', 'is missing: the configs that pretrain the methods')
        tasks = self.tasks(content.get('tasks') or {}, pretrainings, gpus)  # without: pretraining only
        if not tasks and not pretrainings:
            raise self.fail('tasks', 'is missing, and so is pretrain: there is nothing to run')
        suite = Suite(
            self.path,
            size,
            str(content.get('title', self.path.stem)),
            label,
            methods,
            self.seeds(content.get('seeds', [0])),
            pretrainings,
            tasks,
            tuple(' '.join(str(note).split()) for note in content.get('notes') or ()),
        )
        self.check_configs(suite)
        return suite

    def count(self, value: Any, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fail(key, f'{value!r} is not a number of GPUs, 1 or more')
        return value

    def seeds(self, value: Any) -> tuple[int, ...]:
        good = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
        if not good or len(set(value)) < len(value):
            raise self.fail('seeds', f'{value!r} is not a list of different whole numbers, such as [0, 1, 2]')
        return tuple(value)

    def methods(self, value: Any) -> tuple[Method, ...]:
        if isinstance(value, list):
            value = {str(name): {} for name in value}
        if not isinstance(value, Mapping):
            raise self.fail('methods', f'{value!r} is neither a list of names nor a mapping')
        return tuple(self.method(str(name), entry or {}) for name, entry in value.items())

    def method(self, name: str, entry: Any) -> Method:
        key = f'methods.{name}'
        if '/' in name:
            raise self.fail(key, 'a name holds no slash')
        entry = self.mapping(entry, key, METHOD_KEYS)
        if name == UNTRAINED and 'weights' in entry:
            raise self.fail(key, 'an untrained encoder has no weights; give the method another name')
        source = entry.get('source', 'online')
        if source not in ('online', 'momentum'):
            raise self.fail(f'{key}.source', f'{source!r} is neither online nor momentum')
        options = entry.get('options', {})
        if not isinstance(options, Mapping):
            raise self.fail(f'{key}.options', f'{options!r} is not a mapping of config keys to values')
        method = Method(
            name,
            entry.get('configs', 'bootmae' if name == UNTRAINED else name),
            entry.get('weights'),
            source,
            dict(options),
        )
        if options and not method.pretrained:
            raise self.fail(f'{key}.options', 'are those of its pretraining, and it has none: leave them away')
        return method

    def pretrainings(self, value: Any, gpus: int) -> dict[str, Training]:
        if value is None:
            return {}
        single = isinstance(value, str) or (isinstance(value, Mapping) and 'config' in value)
        found = {}
        for name, entry in ({'': value} if single else dict(value)).items():
            key = f'{PRETRAIN}.{name}' if name else PRETRAIN
            entry = self.training(entry, key, TRAINING_KEYS, gpus)
            found[name] = Training(f'{PRETRAIN}-{name}' if name else PRETRAIN, **entry)
        return found

    def training(self, value: Any, key: str, known: tuple[str, ...], gpus: int) -> dict:
        entry = self.mapping({'config': value} if isinstance(value, str) else value, key, known)
        if not isinstance(entry.get('config'), str):
            raise self.fail(f'{key}.config', 'the name of a config file is missing')
        if not isinstance(entry.setdefault('options', {}), Mapping):
            raise self.fail(f'{key}.options', f'{entry["options"]!r} is not a mapping of config keys to values')
        entry['gpus'] = self.count(entry.get('gpus', gpus), f'{key}.gpus')
        return entry

    def tasks(self, value: Any, pretrainings: dict[str, Training], gpus: int) -> tuple[Task, ...]:
        if not isinstance(value, Mapping):
            raise self.fail('tasks', f'{value!r} is not a mapping of names to configs')
        return tuple(self.task(str(name), entry, pretrainings, gpus) for name, entry in value.items())

    def task(self, name: str, value: Any, pretrainings: dict[str, Training], gpus: int) -> Task:
        key = f'tasks.{name}'
        if name.startswith(PRETRAIN) or '/' in name:
            raise self.fail(key, f"a task's name does not begin with {PRETRAIN!r} and holds no slash")
        entry = self.training(value, key, TASK_KEYS, gpus)
        entry.setdefault('kind', name)
        if entry['kind'] not in KINDS:
            raise self.fail(key, f'kind {entry["kind"]!r} is none of {", ".join(KINDS)}; give tasks.{name}.kind')
        if entry['kind'] in FROZEN_KINDS:
            entry['gpus'] = 1
        if entry.get('test') and entry['kind'] in FROZEN_KINDS:
            raise self.fail(f'{key}.test', f'is for what is trained; {entry["kind"]} is judged on the test data anyway')
        if entry.get('tta') and entry['kind'] != 'segmentation':
            raise self.fail(f'{key}.tta', 'is for segmentation')
        labels = entry.get('labels', 'all')
        entry['labels'] = tuple(map(str, labels if isinstance(labels, list) else [labels]))
        if 'blocks' in entry:
            entry['blocks'] = self.blocks(entry['blocks'], f'{key}.blocks', entry['kind'])
        origin = entry.pop('from', next(iter(pretrainings)) if len(pretrainings) == 1 else None)
        if pretrainings and origin not in pretrainings:
            raise self.fail(f'{key}.from', f'{origin!r} is none of the pretrainings: {", ".join(pretrainings)}')
        if entry['kind'] not in FROZEN_KINDS and len(entry['labels']) > 1:
            raise self.fail(f'{key}.labels', 'several amounts are for knn and frozen; make a task of each')
        return Task(name, origin=origin, **entry)

    def blocks(self, value: Any, key: str, kind: str) -> tuple[str, ...]:
        if kind not in FROZEN_KINDS:
            raise self.fail(key, f'is for {" and ".join(FROZEN_KINDS)}')
        numbers = isinstance(value, list) and value and all(type(block) is int and block > 0 for block in value)
        if value != 'all' and not numbers:
            raise self.fail(key, f'{value!r} is neither all nor a list of blocks counted from 1, such as [6, 9, 12]')
        return tuple(map(str, value)) if numbers else (value,)

    def check_configs(self, suite: Suite) -> None:
        """Every config that a cell will need is there."""
        for method in suite.methods:
            trainings = [*(suite.pretrainings.values() if method.pretrained else ()), *suite.tasks]
            for training in trainings:
                config = config_of(training, method)
                if not (REPOSITORY / config).is_file():
                    key = f'tasks.{training.name}' if isinstance(training, Task) else training.name
                    raise FileNotFoundError(
                        f'{suite.path}, {key}.config: there is no {config}, which method {method.name} needs; '
                        f'methods.{method.name}.configs is what replaces {{method}}'
                    )


def config_of(training: Training, method: Method) -> str:
    """The config file of a training for a method."""
    return training.config.replace('{method}', method.configs)
