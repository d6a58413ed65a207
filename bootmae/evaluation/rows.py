"""Result rows of evaluations on this machine: the number, and where it and its encoder come from."""

import datetime
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..checkpoints import read_checkpoint
from ..data.fingerprint import fingerprint
from ..places import portable
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
COLUMNS = ('data', 'method', 'task', 'labels', 'label')  # what --row may set
GIVEN_LABELS = ('measured', 'demo')
DATA_NAMES = {
    'ADE20KDataset': 'ADE20K',
    'CocoDataset': 'COCO',
    'DigitSceneMasks': 'digit scenes',
    'DigitSceneInstances': 'digit scenes',
    'DigitImages': 'digits',
    'PhotoCrops': 'photos',
    'GrayPhotoCrops': 'gray photos',
}
IMAGENET = 'data/imagenet'
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
    papers = row.label == 'measured' and row.data in PAPER_DATA and model_of(row.config)
    return replace(row, label='reproduced') if papers else row


def trained_columns(cfg: Config, given: Sequence[str]) -> dict[str, Any]:
    """Columns of a trained model's rows, from the options ``--row COLUMN=VALUE`` and the config.

    Args:
        cfg: The config, as loaded from its file and ``--cfg-options``.
        given: ``COLUMN=VALUE`` texts; ``task`` is required.

    Raises:
        ValueError: An unknown column, task or label, or a data set that has no name in :data:`DATA_NAMES`.
    """
    columns = dict(text.split('=', 1) if '=' in text else (text, '') for text in given)
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f'--row {name}: unknown column; give COLUMN=VALUE with one of {", ".join(COLUMNS)}')
    if columns.get('task') not in METRIC_KEYS:
        raise ValueError(f'--row task={columns.get("task", "")}: give one of {", ".join(METRIC_KEYS)}')
    if columns.get('label', GIVEN_LABELS[0]) not in GIVEN_LABELS:
        raise ValueError(f'--row label={columns["label"]}: give one of {", ".join(GIVEN_LABELS)}')
    seed = cfg.get('randomness', {}).get('seed') or 0
    return dict(labels='all', seed=seed) | columns | dict(data=columns.get('data') or data_name(cfg))


def trained_rows(
    cfg: Config,
    metrics: Mapping[str, float],
    columns: Mapping[str, Any],
    encoder: str | None,
    encoder_hash: str,
    gpu_seconds: float,
    tta: bool = False,
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
    """
    run = read_run_facts(encoder)
    shared = dict(columns) | dict(
        protocol=protocol_of(cfg, columns['task'], tta), config_hash=config_hash(cfg), data_hash=data_hash(cfg)
    )
    rows = []
    for key in METRIC_KEYS[columns['task']]:
        metric, factor = LOGGED_METRICS[key]
        value = factor * float(metrics[key])
        rows.append(result_row(encoder, encoder_hash, run, gpu_seconds, metric=metric, value=value, **shared))
    return rows


def data_name(cfg: Config) -> str:
    """Name of the test data in result rows.

    Raises:
        ValueError: The config uses a data set without a known name.
    """
    dataset = cfg.test_dataloader.dataset
    if dataset.get('roots') == IMAGENET:
        return 'ImageNet-1k'
    if dataset.type in DATA_NAMES and 'classes' not in (dataset.get('metainfo') or {}):  # other classes, other data
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


def protocol_of(cfg: Config, task: str, tta: bool = False) -> str:
    """What two results must share to be comparable: test resolution, scales and flips, length, and what is trained.

    What belongs to a method's recipe, such as the learning rate or layer decay, may differ; the config has it.
    """
    length = cfg.train_cfg.get('max_epochs')
    length = f'{length} epoch{"s" if length > 1 else ""}' if length else count_of(cfg.train_cfg.max_iters, 'iteration')
    if task == 'detection':
        kind = 'ViTDet' if cfg.model.backbone.get('window_size') else 'Mask R-CNN'
        return f'{kind}, {length}, {_test_size(cfg)}'
    if task == 'segmentation':
        mode = cfg.model.get('test_cfg', {}).get('mode', 'whole')
        return f'UperNet, {length}, {_test_size(cfg)}, {mode}, {"multi-scale and flip" if tta else "single scale"}'
    size = cfg.model.backbone.get('img_size', 224)
    side = f'{size} px' if isinstance(size, int) else f'{size[0]} x {size[1]} px'
    return f'{"linear layer" if task == "linear" else "all weights"} trained, {length}, {side}'


def _test_size(cfg: Config) -> str:
    """Size of the test images, from the ``Resize`` of the pipeline."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] in ('Resize', 'ResizeShortestEdge'):
            scale = step['scale']
            return f'{scale} px' if isinstance(scale, int) else f'{max(scale)} x {min(scale)} px'
    return 'images as they are'
