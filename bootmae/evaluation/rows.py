"""Result rows of evaluations on this machine: the number, and where it and its encoder come from."""

import datetime
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..checkpoints import read_checkpoint, read_encoder
from ..checkpoints.averages import SOURCES
from ..checkpoints.hub import is_name
from ..checkpoints.load import tensors_hash
from ..config.model import task_of
from ..data.fingerprint import fingerprint
from ..places import portable, runs_folder
from ..results.names import LOGGED_METRICS, PAPER_DATA, model_of
from ..results.provenance import device_name, git_commit
from ..results.rows import ResultRow
from ..text import count_of

# Logged metrics of a trained model that become rows, by task
METRIC_KEYS = {
    'linear': ('accuracy/top1',),
    'finetune': ('accuracy/top1',),
    'segmentation': ('mIoU',),
    'detection': ('coco/bbox_mAP', 'coco/segm_mAP'),
}
KINDS = dict(linear='classification', finetune='classification')  # kind of model, if the task has another name
COLUMNS = ('data', 'method', 'task', 'labels', 'label')  # what --row may set
GIVEN_LABELS = ('measured', 'demo')
DATA_NAMES = {
    'ImageFiles': 'ImageNet-1k',
    'ADE20KDataset': 'ADE20K',
    'CocoDataset': 'COCO',
    'DigitSceneMasks': 'digit scenes',
    'DigitSceneInstances': 'digit scenes',
    'DigitImages': 'digits',
    'PhotoCrops': 'photos',
    'GrayPhotoCrops': 'gray photos',
}
PAPER_ROOTS = {  # folders of the papers' data; data of the same format elsewhere are others
    'ImageFiles': 'data/imagenet',
    'ADE20KDataset': 'data/ade/ADEChallengeData2016',
    'CocoDataset': 'data/coco',
}
LIMITS = ('labels_per_class', 'limit', 'indices', 'list_file', 'ann_file')  # settings that may leave images out
SEEDS = ('randomness', 'seed'), ('train_dataloader', 'dataset', 'subset_seed')


def read_run_facts(checkpoint: str | None) -> dict[str, Any]:
    """Facts about the pretraining that ``ProvenanceHook`` stored in a checkpoint; empty for other files and None."""
    return run_facts_of(read_checkpoint(checkpoint)) if checkpoint else {}


def run_facts_of(content: Mapping) -> dict[str, Any]:
    """The same for a checkpoint that was read already."""
    meta = content.get('meta')
    return meta.get('bootmae', {}) if isinstance(meta, dict) else {}


def result_row(
    checkpoint: str | None, checkpoint_hash: str, run: Mapping[str, Any], gpu_seconds: float = 0.0, **columns: Any
) -> ResultRow:
    """A row for an encoder that was evaluated just now.

    Args:
        checkpoint: File of the encoder; None for an untrained one.
        checkpoint_hash: Hash of its weights, from the report of their loading; empty for an untrained one.
        run: Facts about its pretraining; see :func:`read_run_facts`.
        gpu_seconds: GPU-seconds of the evaluation; those of the pretraining are added.
        columns: The other columns. The default of ``method`` is the checkpoint's method, or else its file name. The
            label ``measured`` becomes ``reproduced`` for a pretrained model of the papers on their data.
    """
    method = run.get('method', Path(checkpoint).stem if checkpoint else 'untrained')
    pretraining = dict(
        method=method.lower(),
        config=run.get('config', ''),
        precision=run.get('precision', ''),
        seconds=run.get('seconds', 0.0),
        images=run.get('images', 0),
        memory=run.get('memory', 0.0),
    )
    evaluation = dict(
        checkpoint=portable(checkpoint),
        checkpoint_hash=checkpoint_hash,
        commit=git_commit(),
        device=device_name(),
        date=datetime.date.today().isoformat(),
        gpu_hours=round((run.get('gpu_seconds', 0.0) + gpu_seconds) / 3600, 4),
    )
    row = ResultRow(**pretraining | evaluation | {key: value for key, value in columns.items() if value is not None})
    return with_names(row, row.data, row.label)


def with_names(row: ResultRow, data: str, label: str) -> ResultRow:
    """The row with another data name and label; see :func:`result_row` for ``measured``."""
    papers = label == 'measured' and data in PAPER_DATA and model_of(row.config)
    return replace(row, data=data, label='reproduced' if papers else label)


def trained_columns(cfg: Config, given: Sequence[str]) -> dict[str, Any]:
    """Columns of a trained model's rows, from the options ``--row COLUMN=VALUE`` and the config.

    Args:
        cfg: The config, as loaded from its file and ``--cfg-options``.
        given: ``COLUMN=VALUE`` texts; ``task`` is required.

    Raises:
        ValueError: An unknown column, task or label, a task or a number of labels that is not the config's, or a data
            set without a known name.
    """
    pairs = [text.partition('=')[::2] for text in given]
    columns: dict[str, Any] = dict(pairs)
    for name in columns:
        if len({value for key, value in pairs if key == name}) > 1:
            raise ValueError(f'--row {name} is given twice with different values: leave one of them out')
        if name not in COLUMNS:
            raise ValueError(f'--row {name}: unknown column; give COLUMN=VALUE with one of {", ".join(COLUMNS)}')
    if columns.get('task') not in METRIC_KEYS:
        raise ValueError(f'--row task={columns.get("task", "")}: give one of {", ".join(METRIC_KEYS)}')
    kind = task_of(cfg)
    if KINDS.get(columns['task'], columns['task']) != kind:
        fitting = [task for task in METRIC_KEYS if KINDS.get(task, task) == kind]
        remedy = f'give {" or ".join(fitting)}' if fitting else 'leave out --rows, which is for downstream tasks'
        raise ValueError(f'--row task={columns["task"]}: the model of {cfg.filename} is one for {kind}: {remedy}')
    if columns.get('label', GIVEN_LABELS[0]) not in GIVEN_LABELS:
        raise ValueError(f'--row label={columns["label"]}: give one of {", ".join(GIVEN_LABELS)}')
    seed = cfg.get('randomness', {}).get('seed') or 0
    labels, data = labels_of(cfg, columns.get('labels')), columns.get('data') or data_name(cfg)
    return dict(seed=seed) | columns | dict(labels=labels, data=data)


def labels_of(cfg: Config, given: str | None = None) -> str:
    """Number of labeled images per class that a config trains on, or ``all``; or the name that it is given.

    Raises:
        ValueError: ``given`` is another number, or ``all``; or it is a number, but the config trains on all images.
    """
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    limit = str(dataset.get('labels_per_class') or 'all')
    if given and given.isdigit() and not any(dataset.get(name) for name in LIMITS):
        raise ValueError(
            f'labels={given}, but {cfg.filename} trains on all images: leave labels out, or set '
            f'train_dataloader.dataset.labels_per_class={given}'
        )
    if limit != 'all' and given and given != limit and (given == 'all' or given.isdigit()):
        raise ValueError(
            f'labels={given}, but train_dataloader.dataset.labels_per_class of {cfg.filename} is {limit}: leave labels '
            f'out, or set labels_per_class={given if given != "all" else None}'
        )
    return given or limit


def check_labels(meta: Mapping[str, Any], cfg: Config, whose: str) -> None:
    """Raise a ValueError if a checkpoint records another number of labels than the config, which the row would name."""
    settings = (meta.get('identity') or {}).get('settings') or {}
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    theirs, ours = settings.get('train_dataloader.dataset.labels_per_class'), dataset.get('labels_per_class')
    if settings and theirs != ours:
        raise ValueError(
            f'{whose} was trained with train_dataloader.dataset.labels_per_class={theirs}, but {cfg.filename} has '
            f'{ours}: give the config and options of its training, or leave out --rows'
        )


def trained_rows(
    cfg: Config,
    metrics: Mapping[str, float],
    columns: Mapping[str, Any],
    encoder: str | None,
    encoder_hash: str,
    gpu_seconds: float,
    tta: bool = False,
    length: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> list[ResultRow]:
    """Rows of a trained model.

    Args:
        cfg: The config, as loaded from its file and ``--cfg-options``.
        metrics: Result of its evaluator.
        columns: As of :func:`trained_columns`.
        encoder: File of the encoder that the training started from; None for random weights.
        encoder_hash: Hash of that encoder.
        gpu_seconds: GPU-seconds of training and evaluation.
        tta: Whether the test used several scales and flips.
        length: Length of the training; that of the config by default.
        run: Facts about the encoder's pretraining; those in its file by default.
    """
    names = METRIC_KEYS[columns['task']]
    if not set(names) & set(metrics):
        raise ValueError(
            f'no result row for task={columns["task"]}: the evaluator of {cfg.filename} gives {", ".join(metrics)}, '
            f'and none of {", ".join(names)}'
        )
    run = read_run_facts(encoder) if run is None else run
    shared = dict(columns) | dict(
        protocol=protocol_of(cfg, columns['task'], tta, length), config_hash=config_hash(cfg), data_hash=data_hash(cfg)
    )
    rows = []
    for key in (name for name in names if name in metrics):  # a detector may have no masks
        metric, factor = LOGGED_METRICS[key]
        value = factor * float(metrics[key])
        rows.append(result_row(encoder, encoder_hash, run, gpu_seconds, metric=metric, value=value, **shared))
    return rows


def start_of(
    meta: Mapping[str, Any], whose: str, given: str | None, named: bool = False
) -> tuple[str | None, str, dict[str, Any] | None]:
    """The encoder that the training of a checkpoint started from, as its metadata tell.

    Args:
        meta: ``meta`` of the checkpoint.
        whose: Its file, for messages.
        given: ``--init``.
        named: Whether ``--row`` gives the method.

    Returns:
        File, hash, and facts about the pretraining (None: those in the file), as :func:`trained_rows` takes them.

    Raises:
        ValueError: ``given`` is not the recorded encoder, or it is missing and needed.
    """
    facts, identity = meta.get('bootmae') or {}, meta.get('identity') or {}
    if facts.get('init_hash'):
        name, digest = identity.get('init') or facts.get('init', ''), facts['init_hash']
        return recorded_encoder(name, digest, whose, given), digest, None
    if not identity:  # another program or an older version wrote it
        if not given and not named:
            raise ValueError(
                f'{whose} does not record the encoder that its training started from: give it with --init CHECKPOINT, '
                'or name the method with --row method=NAME'
            )
        return given, '', None
    settings = identity.get('settings') or {}
    other = next((f'{key}={value}' for key, value in settings.items() if value and is_weights(key)), None)
    if given:
        raise ValueError(
            f'--init {given}: {whose} records that its training started from {other or "random weights"}: leave out '
            '--init'
        )
    return (other and other.partition('=')[2]), '', {}


def is_weights(key: str) -> bool:
    """Whether a setting of a training, by its dotted key, names a file whose weights are loaded but not recorded."""
    return key == 'load_from' or (key.startswith('model.') and key.endswith('init_cfg.checkpoint'))


def recorded_encoder(name: str, digest: str, whose: str, given: str | None = None) -> str:
    """File of the encoder that a run recorded: the given one, or else the recorded one if it is still there.

    Raises:
        ValueError: The file has another encoder, or there is none.
    """
    recorded = f'{name} [{digest}]'
    places = [name] if is_name(name) else [str(path) for path in (Path(name), runs_folder() / name) if path.is_file()]
    file = given or next(iter(places), None)
    if file is None:
        raise ValueError(
            f'{whose} started from the encoder {recorded}, and this file is not there: give it with --init CHECKPOINT, '
            'or leave out --rows'
        )
    found = encoder_hashes(file, digest)
    if digest in found:
        return file
    what = f'--init {file}' if given else file
    raise ValueError(
        f'{what} has the encoder [{", ".join(found)}], but {whose} started from {recorded}: give the file of that '
        'encoder with --init, or leave out --rows'
    )


def encoder_hashes(path: str, wanted: str) -> list[str]:
    """Hashes of the encoders in a file, until the wanted one is found."""
    content, found = read_checkpoint(path), []
    for source in SOURCES:
        with suppress(ValueError):  # the file has no such encoder
            found.append(tensors_hash(read_encoder(path, source, content).state))
        if wanted in found:
            break
    return list(dict.fromkeys(found))


def recorded_length(meta: Mapping[str, Any], cfg: Config, whose: str) -> str | None:
    """Length of the training of a checkpoint, such as ``100 epochs`` or ``50 of 100 epochs``; None: that of the config.

    Raises:
        ValueError: The checkpoint records only how far it has come, and this is not the length of the config.
    """
    facts = (meta.get('identity') or {}).get('facts') or (meta.get('bootmae') or {}).get('run') or {}
    total, unit = length_of(cfg)
    known = next((key for key in ('max_epochs', 'max_steps') if facts.get(key)), None)
    if known:
        total, unit = facts[known], 'epoch' if known == 'max_epochs' else 'iteration'
    done = meta.get('epoch' if unit == 'epoch' else 'iter')
    if done is None:
        return length_text(total, unit) if known else None
    if unit == 'iteration':  # the config counts optimizer steps
        done //= meta.get('accumulation') or 1
    if not known and done != total:
        raise ValueError(
            f'{whose} was saved after {length_text(done, unit)}, but {cfg.filename} trains for '
            f'{length_text(total, unit)}: give the config that it was trained with, or leave out --rows'
        )
    return length_text(total, unit) if done >= total else f'{done:,} of {length_text(total, unit)}'


def data_name(cfg: Config) -> str:
    """Name of the test data in result rows.

    Raises:
        ValueError: The config uses a data set without a known name.
    """
    dataset = cfg.test_dataloader.dataset
    root = str(dataset.get('data_root') or dataset.get('roots'))
    paper_root = PAPER_ROOTS.get(dataset.type, root)
    same_root = (runs_folder() / root).resolve() == (runs_folder() / paper_root).resolve()
    if dataset.type in DATA_NAMES and same_root and 'classes' not in (dataset.get('metainfo') or {}):
        return DATA_NAMES[dataset.type]
    raise ValueError(
        f'{cfg.filename}: {dataset.type} has no name for result rows: give one by "data" of the task in a suite file, '
        '--row data=NAME (tools/train.py, tools/test.py) or --data-name NAME (tools/knn.py)'
    )


def data_hash(cfg: Config) -> str:
    """Fingerprint of the test data."""
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        return fingerprint(DATASETS.build(dict(cfg.test_dataloader.dataset, pipeline=[], test_mode=True)))


def config_hash(cfg: Config) -> str:
    """Hash of a config with all overrides, without its seeds, path and work directory."""
    content = cfg.to_dict()
    content.pop('work_dir', None)
    for *path, last in SEEDS:
        inner: Any = content
        for key in path:
            inner = inner.get(key) or {}
        inner.pop(last, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def protocol_of(cfg: Config, task: str, tta: bool = False, length: str | None = None) -> str:
    """What two results must share to be comparable: test resolution, scales and flips, length, and what is trained.

    What belongs to a method's recipe, such as the learning rate or layer decay, may differ; the config has it. The
    length is that of the config, unless it is given.
    """
    length = length or length_text(*length_of(cfg))
    if task == 'detection':
        kind = 'ViTDet' if cfg.model.backbone.get('window_size') else 'Mask R-CNN'
        return f'{kind}, {length}, {_test_size(cfg)}'
    if task == 'segmentation':
        mode = cfg.model.get('test_cfg', {}).get('mode', 'whole')
        return f'UperNet, {length}, {_test_size(cfg)}, {mode}, {"multi-scale and flip" if tta else "single scale"}'
    size = cfg.model.backbone.get('img_size', 224)
    side = f'{size} px' if isinstance(size, int) else f'{size[0]} x {size[1]} px'
    return f'{"linear layer" if task == "linear" else "all weights"} trained, {length}, {side}'


def length_of(cfg: Config) -> tuple[int, str]:
    """Length of a config's training, and whether it is in epochs or iterations."""
    epochs = cfg.train_cfg.get('max_epochs')
    return (epochs, 'epoch') if epochs else (cfg.train_cfg.max_iters, 'iteration')


def length_text(number: int, unit: str) -> str:
    """A length in words."""
    return count_of(number, unit) if unit == 'iteration' else f'{number} epoch{"s" if number > 1 else ""}'


def frozen_protocol(task: str, block: int, depth: int, k: int = 20) -> str:
    """The same for frozen features after a block (counted from 1) of an encoder with ``depth`` blocks."""
    return f'{f"k={k}" if task == "knn" else "logistic regression"}, block {block} of {depth}'


def _test_size(cfg: Config) -> str:
    """Size of the test images, from the ``Resize`` of the pipeline."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] in ('Resize', 'ResizeShortestEdge'):
            scale = step['scale']
            return f'{scale} px' if isinstance(scale, int) else f'{max(scale)} x {min(scale)} px'
    return 'images as they are'
