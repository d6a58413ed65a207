"""Suite files: methods, seeds, pretrainings and tasks, checked before anything runs.

    title: BootMAE and MAE, ViT-B/16
    methods: [untrained, mae, bootmae]      # {method} in configs is replaced by these
    seeds: [0, 1, 2]
    pretrain: configs/pretrain/{method}_vitb.py
    tasks:
      finetune: configs/cls/{method}_vitb_finetune.py

docs/suite.md documents all keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..config.options import IMAGES
from ..places import REPOSITORY, runs_folder

UNTRAINED = 'untrained'
FROZEN_KINDS = ('knn', 'frozen')  # evaluated by tools/knn.py, without training
PRETRAIN = 'pretrain'  # the names of all pretrainings start with it
GIVEN = ('name',)  # fields that come from the key of an entry, not from its content
Count = Annotated[int, Field(strict=True, ge=1)]
Source = Literal['online', 'momentum', 'raw', 'ema']
Seed = Annotated[int, Field(strict=True, ge=0)]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(map(str, value if isinstance(value, list | tuple) else [value]))),
]


class Entry(BaseModel):
    """A part of a suite file; unknown keys are errors."""

    model_config = ConfigDict(extra='forbid', frozen=True, populate_by_name=True)


class Method(Entry):
    """How an encoder is made.

    Attributes:
        name: Name in result rows.
        configs: Replacement of ``{method}`` in the names of configs.
        weights: File, folder of a run or ``timm:NAME`` to use instead of pretraining; may contain ``{seed}``. None: the
            suite pretrains the method, or it is untrained.
        source: Encoder of a file that is evaluated, see :func:`bootmae.checkpoints.find_encoder`.
        init: File or ``timm:NAME`` that its pretrainings start from; may contain ``{seed}``.
        init_source: Encoder of that file.
        options: Config values of its pretrainings, which override those of the pretrainings themselves.
    """

    name: str
    configs: str
    weights: str | None = None
    source: Source = 'online'
    init: str | None = None
    init_source: Source = 'online'
    options: dict[str, Any] = {}

    @property
    def pretrained(self) -> bool:
        """Whether the suite pretrains it."""
        return self.weights is None and self.name != UNTRAINED

    @model_validator(mode='after')
    def _check(self) -> 'Method':
        if '/' in self.name:
            raise ValueError('a name must not contain a slash')
        if self.name == UNTRAINED and self.weights:
            raise ValueError('an untrained encoder has no weights; give the method another name')
        if self.name == UNTRAINED and 'source' in self.model_fields_set:
            raise ValueError('an untrained encoder comes from no file, so source has no effect; remove it')
        if self.options and not self.pretrained:
            raise ValueError('options belong to the pretraining of a method, and this one has none; remove them')
        if self.init and not self.pretrained:
            raise ValueError('init belongs to the pretraining of a method, and this one has none; use weights')
        if not self.init and 'init_source' in self.model_fields_set:
            remedy = 'use source for weights' if self.weights else 'add init, or remove init_source'
            raise ValueError(f'init_source chooses the encoder of the file init, which is missing; {remedy}')
        return self


class Training(Entry):
    """A pretraining.

    Attributes:
        name: Name of its cells.
        config: Config file; may contain ``{method}``.
        options: Config values, as for ``--cfg-options``; a value ``{seed}`` is replaced.
        gpus: GPUs of one training.
    """

    name: str
    config: str
    options: dict[str, Any] = {}
    gpus: Count = 1


class Task(Training):
    """How encoders are evaluated.

    Attributes:
        kind: Kind of evaluation; the default is the task's name.
        origin: Pretraining that its encoders come from (key ``from``); None without pretrainings.
        seeds: Seeds that it evaluates: all of the suite's, or some of them.
        data: Name of the data in the rows; None: from the config.
        labels: For ``knn`` and ``frozen`` the numbers of labeled images per class, or ``all``. For the others the name
            that the rows give to the number that the config trains on. Empty: from the config.
        blocks: For ``knn`` and ``frozen`` the blocks whose output is evaluated, or ``all``; empty: the config's block.
        test: Whether ``tools/test.py`` evaluates a trained model on the test data. Otherwise the last validation is the
            result, and both must be the same data.
        tta: Whether a segmentor is also tested with several scales and flips.
    """

    kind: Literal['knn', 'frozen', 'linear', 'finetune', 'segmentation', 'detection']
    origin: str | None = Field(None, alias='from')
    seeds: tuple[Seed, ...] = Field((), min_length=1)
    data: str | None = None
    labels: Texts = ()
    blocks: Texts = ()
    test: bool = False
    tta: bool = False

    @field_validator('blocks')
    @classmethod
    def _check_blocks(cls, blocks: tuple[str, ...]) -> tuple[str, ...]:
        if blocks != ('all',) and not all(block.isdecimal() and int(block) for block in blocks):
            raise ValueError(f'{list(blocks)} is neither all nor a list of blocks counted from 1, such as [6, 9, 12]')
        return blocks

    @model_validator(mode='after')
    def _check(self) -> 'Task':
        frozen, kinds = self.kind in FROZEN_KINDS, ' and '.join(FROZEN_KINDS)
        if self.name.startswith(PRETRAIN) or '/' in self.name + (self.data or ''):
            raise ValueError(
                f'the name of a task must not start with {PRETRAIN!r}, and neither it nor data may contain a slash'
            )
        if self.test and frozen:
            raise ValueError(f'test is for trained models; {self.kind} always uses the test data')
        if self.tta and self.kind != 'segmentation':
            raise ValueError('tta is for segmentation')
        if self.blocks and not frozen:
            raise ValueError(f'blocks is for {kinds}')
        if len(self.labels) > 1 and not frozen:
            raise ValueError(f'several values of labels are for {kinds}; write one task for each')
        return self


class SuiteFile(Entry):
    """The top level of a suite file, as it is written."""

    title: str | None = None
    label: Literal['measured', 'demo'] = 'measured'
    methods: dict[str, dict | None] = Field(min_length=1)
    seeds: list[Seed] = Field([0], min_length=1)
    gpus: Count = 1
    pretrain: str | dict | None = None
    tasks: dict[str, str | dict] | None = None
    notes: list[str] = []
    sizes: dict[str, dict] | None = None

    @field_validator('methods', mode='before')
    @classmethod
    def _names(cls, value: Any) -> Any:
        return {str(name): {} for name in value} if isinstance(value, list) else value

    @field_validator('seeds')
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f'{seeds} repeats a seed')
        return seeds


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
    images: tuple[str, ...] = ()


def load_suite(path: str | Path, size: str | None = None, images: Sequence[str] = ()) -> Suite:
    """Read a suite file.

    Args:
        path: A YAML file.
        size: Name of one of its ``sizes``, which is merged over the rest.
        images: Paths that replace the images of its pretrainings (``--data``).

    Raises:
        FileNotFoundError: The file, or a config that it names, does not exist.
        ValueError: An invalid value; the message names file, key and remedy.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob('*.y*ml')) if path.parent.is_dir() else []
        remedy = f'there are {", ".join(near)}' if near else f'see {REPOSITORY}/suites'
        raise FileNotFoundError(f'no suite file {path}: {remedy}')
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML in UTF-8: {error}') from None
    if not isinstance(content, Mapping):
        found = 'empty' if content is None else f'only {content!r:.60}'
        raise ValueError(
            f'{path} is no suite file, it is {found}: it needs methods, pretrain and tasks (docs/suite.md)'
        )
    if size is not None:
        sizes = parse(path, '', SuiteFile, content).sizes or {}
        if size not in sizes:
            raise ValueError(f'{path}, sizes: there is no size {size!r}; there are {", ".join(sizes) or "none"}')
        content = merge(content, sizes[size])
    suite = make_suite(path, size, parse(path, '', SuiteFile, content))
    return with_images(suite, images) if images else suite


def with_images(suite: Suite, images: Sequence[str]) -> Suite:
    """The suite with other images for all of its pretrainings.

    Raises:
        ValueError: A method would not read them.
    """
    pretrained = [method for method in suite.methods if method.pretrained]
    if not suite.pretrainings or not pretrained:
        raise ValueError(f'{suite.path} pretrains nothing, so --data has no effect: set images in options of its tasks')
    for method in pretrained:
        if IMAGES in method.options:
            raise ValueError(
                f'{suite.path}, methods.{method.name}.options.{IMAGES}: {method.options[IMAGES]!r} overrides --data '
                'for this method: remove it, or leave --data out'
            )
    changed = {
        name: training.model_copy(update=dict(options=training.options | {IMAGES: list(images)}))
        for name, training in suite.pretrainings.items()
    }
    return replace(suite, pretrainings=changed, images=tuple(images))


def merge(base: Mapping, over: Mapping) -> dict:
    """``base`` with the values of ``over``; mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


EntryType = TypeVar('EntryType', bound=Entry)


def parse(path: Path, key: str, kind: type[EntryType], content: Any, **given: Any) -> EntryType:
    """An entry of a suite file as an object.

    Args:
        path: The suite file.
        key: Dotted key of the entry; empty for the whole file.
        kind: Class of the result.
        content: The entry.
        given: Values that the entry does not contain (its name), and defaults.

    Raises:
        ValueError: An invalid or unknown key; names file, key, value and, for an unknown key, the nearest known one.
    """
    known = [field.alias or name for name, field in kind.model_fields.items() if name not in GIVEN]
    if isinstance(content, Mapping) and (wrong := [name for name in content if name not in known]):
        near = get_close_matches(str(wrong[0]), known, 1)
        hint = f'is {near[0]} meant?' if near else f'known are {", ".join(known)}'
        raise ValueError(f'{path}, {dotted(key, wrong[0])}: unknown key; {hint}')
    try:
        return kind.model_validate(given | dict(content) if isinstance(content, Mapping) else content)
    except ValidationError as error:
        first = error.errors()[0]
        message = first['msg'].removeprefix('Value error, ')
        value = f'{first["input"]!r} is invalid: ' if first['type'] not in ('value_error', 'missing') else ''
        raise ValueError(f'{path}, {dotted(key, *first["loc"])}: {value}{message}') from None


def dotted(*parts: object) -> str:
    return '.'.join(str(part) for part in parts if part != '') or 'the file'


def make_suite(path: Path, size: str | None, file: SuiteFile) -> Suite:
    """The suite of a file whose top level has been checked.

    Raises:
        FileNotFoundError, ValueError: See :func:`load_suite`.
    """
    methods = tuple(
        parse(path, f'methods.{name}', Method, entry or {}, name=name, configs='bootmae' if name == UNTRAINED else name)
        for name, entry in file.methods.items()
    )
    pretrainings = make_pretrainings(path, file)
    if not pretrainings and any(method.pretrained for method in methods):
        raise ValueError(f'{path}, pretrain: is missing: the configs that pretrain the methods')
    tasks = tuple(make_task(path, name, entry, file, pretrainings) for name, entry in (file.tasks or {}).items())
    if not tasks and not pretrainings:
        raise ValueError(f'{path}, tasks: is missing, and so is pretrain: there is nothing to run')
    notes = tuple(' '.join(note.split()) for note in file.notes)
    title = file.title or path.stem
    suite = Suite(path, size, title, file.label, methods, tuple(file.seeds), pretrainings, tasks, notes)
    check_configs(suite)
    return suite


def make_pretrainings(path: Path, file: SuiteFile) -> dict[str, Training]:
    """Pretrainings by name; a single one has an empty name."""
    if file.pretrain is None:
        return {}
    entries: dict = (
        file.pretrain if isinstance(file.pretrain, dict) and 'config' not in file.pretrain else {'': file.pretrain}
    )
    found = {}
    for name, entry in entries.items():
        key = dotted(PRETRAIN, name)
        full_name = f'{PRETRAIN}-{name}' if name else PRETRAIN
        found[name] = parse(path, key, Training, with_config(entry), name=full_name, gpus=file.gpus)
    return found


def make_task(path: Path, name: str, entry: str | dict, file: SuiteFile, pretrainings: dict[str, Training]) -> Task:
    key = f'tasks.{name}'
    origin = next(iter(pretrainings)) if len(pretrainings) == 1 else None
    default = {'kind': name, 'from': origin, 'seeds': file.seeds}
    task = parse(path, key, Task, default | with_config(entry), name=name, gpus=file.gpus)
    if pretrainings and task.origin not in pretrainings:
        raise ValueError(f'{path}, {key}.from: {task.origin!r} is none of the pretrainings: {", ".join(pretrainings)}')
    if other := [seed for seed in task.seeds if seed not in file.seeds]:
        known = ', '.join(map(str, file.seeds))
        raise ValueError(f'{path}, {key}.seeds: {other[0]} is none of the seeds of the suite, {known}')
    return task.model_copy(update=dict(gpus=1)) if task.kind in FROZEN_KINDS else task


def with_config(entry: Any) -> Any:
    """An entry that is only the name of a config, as a mapping."""
    return {'config': entry} if isinstance(entry, str) else entry


def check_configs(suite: Suite) -> None:
    """Raise a FileNotFoundError unless every config that a cell needs exists."""
    for method in suite.methods:
        for training in [*(suite.pretrainings.values() if method.pretrained else ()), *suite.tasks]:
            config = config_of(training, method)
            if not any((folder / config).is_file() for folder in (runs_folder(), REPOSITORY)):
                key = f'tasks.{training.name}' if isinstance(training, Task) else training.name
                raise FileNotFoundError(
                    f'{suite.path}, {key}.config: there is no {config}, which method {method.name} needs; '
                    f'methods.{method.name}.configs is what replaces {{method}}'
                )


def config_of(training: Training, method: Method) -> str:
    """The config file of a training for a method."""
    return training.config.replace('{method}', method.configs)
