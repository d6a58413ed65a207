"""From a finished cell to its result rows."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..config.load import load_config
from ..data.fingerprint import fingerprint
from ..evaluation.probe import chosen_blocks
from ..evaluation.rows import result_row, run_facts
from ..models.vit import resolve_arch
from ..report.curves import read_curve
from ..results.rows import ResultRow, read_rows, write_rows
from .cells import Cell, last_checkpoint
from .job_state import config_hash, read_job_state, rows_file

# Of a training's validation, by kind of task: the metric's name in rows, its key in the log, and the factor to percent
METRICS = {
    'linear': {'accuracy': ('accuracy/top1', 1.0)},
    'finetune': {'accuracy': ('accuracy/top1', 1.0)},
    'segmentation': {'mIoU': ('mIoU', 1.0)},
    'detection': {'box AP': ('coco/bbox_mAP', 100.0), 'mask AP': ('coco/segm_mAP', 100.0)},
}
DATA_NAMES = {
    'ADE20KDataset': 'ADE20K',
    'CocoDataset': 'COCO',
    'DigitSceneMasks': 'digit scenes',
    'DigitSceneInstances': 'digit scenes',
    'DigitImages': 'digits',
    'PhotoCrops': 'photos',
}
IMAGENET = 'data/imagenet'


def cell_config(cell: Cell) -> Config:
    """The config of a cell with its options; ``blocks`` of a task are part of it, and so of its hash.

    Raises:
        ValueError: for a block that the encoder does not have, and for a task whose result would be of other data than
            its test data.
    """
    cfg = load_config(cell.config, cell.options)
    if cell.task and cell.trains and not cell.task.test and _images_of(cfg, 'val') != _images_of(cfg, 'test'):
        raise ValueError(
            f'{cell.suite.path}, tasks.{cell.task.name}: {cell.config} tests on other data than it '
            'validates on, and the last validation would be the result; give the task "test: true"'
        )
    if cell.task and cell.task.blocks:
        try:
            cfg.blocks = chosen_blocks(cell.task.blocks, resolve_arch(cfg.model.backbone.arch)['depth'])
        except ValueError as error:
            raise ValueError(f'{cell.suite.path}, tasks.{cell.task.name}: {error}') from None
        cfg.model.backbone.depth = cfg.blocks[-1]  # as tools/knn.py builds it
    return cfg


def _images_of(cfg: Config, part: str) -> dict:
    dataset = cfg[f'{part}_dataloader'].dataset.to_dict()
    return {key: value for key, value in dataset.items() if key not in ('pipeline', 'test_mode')}


def collect(cell: Cell, gpus: int) -> list[ResultRow]:
    """Read what a finished evaluation left, write it to ``rows.csv`` in the cell's folder, and return it.

    Args:
        cell: an evaluation.
        gpus: that it used; 0: CPU.

    Raises:
        FileNotFoundError, ValueError: if there is no number to be found.
    """
    cfg = cell_config(cell)
    known = dict(config_hash=config_hash(cfg), data_hash=data_hash(cell.config, json.dumps(cell.options, default=str)))
    seconds = gpus * read_job_state(cell).seconds
    rows = list(_trained_rows(cell, cfg, seconds, known) if cell.trains else _frozen_rows(cell, seconds, known, cfg))
    rows_file(cell).unlink(missing_ok=True)
    write_rows(rows_file(cell), rows)
    return rows


def data_name(cell: Cell, cfg: Config) -> str:
    """What the judged data is called.

    Raises:
        ValueError: if the suite file does not say, and the config does not tell.
    """
    task = cell.task
    if task.data:
        return task.data
    if len(cell.suite.pretrainings) > 1 and task.kind not in ('segmentation', 'detection'):
        return task.origin
    dataset = cfg.test_dataloader.dataset
    if dataset.get('roots') == IMAGENET:
        return 'ImageNet-1k'
    if dataset.type in DATA_NAMES:
        return DATA_NAMES[dataset.type]
    raise ValueError(f'{cell.suite.path}, tasks.{task.name}.data: give the data of this task a name for the results')


@lru_cache(maxsize=256)
def data_hash(config: str, options: str) -> str:
    """Fingerprint of the data that a config judges on; methods and seeds share it."""
    values = {key: value for key, value in json.loads(options).items() if not key.startswith('randomness')}
    dataset = load_config(config, values).test_dataloader.dataset
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        return fingerprint(DATASETS.build(dict(dataset, pipeline=[], test_mode=True)))


def _trained_rows(cell: Cell, cfg: Config, gpu_seconds: float, known: dict) -> Iterator[ResultRow]:
    task, checkpoint = cell.task, last_checkpoint(cell.run)
    row = partial(
        result_row,
        cell.weights,
        run_facts(str(checkpoint)).get('init_hash', ''),
        gpu_seconds,
        **known,
        data=data_name(cell, cfg),
        method=cell.method.name,
        task=task.kind,
        labels=task.labels[0],
        seed=cell.seed,
        label=cell.suite.label,
    )
    protocol = protocol_of(cfg, task.kind)
    tested = json.loads((cell.folder / 'test.json').read_text()) if task.test else None
    for metric, (key, factor) in METRICS[task.kind].items():
        value = tested[key] if task.test else read_curve(cell.name, cell.run, having=key).values[key][-1]
        yield row(metric=metric, value=factor * float(value), protocol=protocol)
    if task.tta:
        value = json.loads((cell.folder / 'tta.json').read_text())['mIoU']
        yield row(metric='mIoU', value=float(value), protocol=protocol_of(cfg, task.kind, tta=True))


def _frozen_rows(cell: Cell, gpu_seconds: float, known: dict, cfg: Config) -> Iterator[ResultRow]:
    """Those that ``tools/knn.py`` wrote, with what only the suite knows."""
    for row in read_rows(cell.folder / 'knn.csv'):
        yield replace(
            row,
            **known,
            data=data_name(cell, cfg),
            seed=cell.seed,
            label=cell.suite.label,
            gpu_hours=round(row.gpu_hours + gpu_seconds / 3600, 4),
        )


def protocol_of(cfg: Config, kind: str, tta: bool = False) -> str:
    """What must agree between two results to compare them, in words, from the config.

    Resolution, scales and flips of the test, length of the training, and what is trained. What belongs to a method's
    recipe, such as learning rate or layer decay, may differ, and stands in the config.
    """
    length = cfg.train_cfg.get('max_epochs')
    length = f'{length} epoch{"s" if length > 1 else ""}' if length else f'{cfg.train_cfg.max_iters:,} iterations'
    if kind == 'detection':
        kind = 'ViTDet' if cfg.model.backbone.get('window_size') else 'Mask R-CNN'
        return f'{kind}, {length}, {_test_size(cfg)}'
    if kind == 'segmentation':
        mode = cfg.model.get('test_cfg', {}).get('mode', 'whole')
        return f'UperNet, {length}, {_test_size(cfg)}, {mode}, {"multi-scale and flip" if tta else "single scale"}'
    size = cfg.model.backbone.get('img_size', 224)
    side = f'{size} px' if isinstance(size, int) else f'{size[0]} x {size[1]} px'
    return f'{"linear layer" if kind == "linear" else "all weights"} trained, {length}, {side}'


def _test_size(cfg: Config) -> str:
    """The size of test images by the ``Resize`` of the pipeline, else as they are."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] in ('Resize', 'ResizeShortestEdge'):
            scale = step['scale']
            return f'{scale} px' if isinstance(scale, int) else f'{max(scale)} x {min(scale)} px'
    return 'images as they are'


def all_rows(cells: list[Cell]) -> list[ResultRow]:
    """Rows of all finished cells, in order."""
    return [row for cell in cells if cell.task and rows_file(cell).is_file() for row in read_rows(rows_file(cell))]


def write_results(cells: list[Cell], path: Path) -> list[ResultRow]:
    """All rows in one file, written whole."""
    rows = all_rows(cells)
    if rows:
        path.unlink(missing_ok=True)
        write_rows(path, rows)
    return rows
