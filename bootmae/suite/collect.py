"""The config of a cell, and the result rows of finished cells."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config

from ..commands.knn import check_classifier
from ..config.load import load_config
from ..evaluation import rows
from ..evaluation.probe import chosen_blocks
from ..models.vit import resolve_arch
from ..results.rows import ResultRow, read_rows, write_rows
from .cells import TASKS_OF_KIND, Cell


def cell_config(cell: Cell) -> Config:
    """The config of a cell with its options. The ``blocks`` of a task are part of it, and therefore of its hash.

    Raises:
        ValueError: A block that the encoder does not have, a config for frozen features that is no classifier's,
            or a validation set that is not the test set although the last validation would be the result.
    """
    cfg = load_config(cell.config, cell.options)
    if cell.task and cell.trains and not cell.task.test and _images_of(cfg, 'val') != _images_of(cfg, 'test'):
        raise ValueError(
            f'{cell.suite.path}, tasks.{cell.task.name}: {cell.config} validates on other data than it tests on, and '
            'the last validation would be the result; give the task "test: true"'
        )
    if cell.task and not cell.trains:
        check_classifier(cfg)
    if cell.task and cell.task.blocks:
        try:
            cfg.blocks = chosen_blocks(cell.task.blocks, _depth(cfg))
        except ValueError as error:
            raise ValueError(f'{cell.suite.path}, tasks.{cell.task.name}: {error}') from None
        cfg.model.backbone.depth = cfg.blocks[-1]  # as tools/knn.py builds it
    return cfg


def _depth(cfg: Config) -> int:
    return resolve_arch(cfg.model.backbone.get('arch', 'base'))['depth']  # the default of PlainViT


def _images_of(cfg: Config, split: str) -> dict:
    dataset = cfg[f'{split}_dataloader'].dataset.to_dict()
    return {key: value for key, value in dataset.items() if key not in ('pipeline', 'test_mode')}


def data_name(cell: Cell, cfg: Config | None = None) -> str:
    """Name of a cell's test data, with the pretraining if tasks of this kind judge several.

    Args:
        cell: The cell.
        cfg: Its config, if it was loaded before.

    Raises:
        ValueError: Neither the suite file nor the config gives one.
    """
    task = cell.task
    if task.data:
        return task.data
    try:
        name = rows.data_name(cfg or cell_config(cell))
    except ValueError as error:
        raise ValueError(f'{cell.suite.path}, tasks.{task.name}.data: {error}') from None
    several = len({other.origin for other in cell.suite.tasks if other.kind == task.kind}) > 1
    return f'{name} (pretrained on {task.origin})' if several else name


RowKey = tuple[str, str, str, str]  # data, task, labels and protocol: what tells rows of a method and seed apart


def row_keys(cell: Cell, cfg: Config) -> list[RowKey]:
    """Keys of the rows that an evaluation writes.

    Raises:
        ValueError: The data have no name, or the number of labels is not that of the config.
    """
    task, data = cell.task, data_name(cell, cfg)
    try:
        labels = task.labels or (rows.labels_of(cfg),)
        for given in labels if cell.trains else {'all'}.intersection(labels):
            rows.labels_of(cfg, given)
    except ValueError as error:
        raise ValueError(f'{cell.suite.path}, tasks.{task.name}: {error}') from None
    if cell.trains:
        tests = (False, True) if task.tta else (False,)
        return [(data, task.kind, labels[0], rows.protocol_of(cfg, task.kind, tta)) for tta in tests]
    depth = _depth(cfg)
    return [
        (data, kind, number, rows.frozen_protocol(kind, block, depth))
        for kind in TASKS_OF_KIND[task.kind]
        for number in labels
        for block in cfg.get('blocks') or [cfg.model.backbone.get('depth') or depth]
    ]


def repeated_rows(keys: Iterable[tuple[Cell, Iterable[RowKey]]]) -> str:
    """What is wrong if two tasks would write the same rows, which replace one another; empty if none would.

    Args:
        keys: Evaluations with the keys of their rows.
    """
    first: dict[tuple[str, int, RowKey], Cell] = {}
    for cell, found in keys:
        for key in found:
            other = first.setdefault((cell.method.name, cell.seed, key), cell)
            if other.task is not cell.task:
                return (
                    f'{other.name} and {cell.name} would write the same row ({", ".join(key)}), so that one result is '
                    f'lost: give tasks.{cell.task.name} a name of its own with "data"'
                )
    return ''


def all_rows(cells: Iterable[Cell]) -> list[ResultRow]:
    """Rows of all finished cells, in order, with the data name and label that the suite file gives now."""
    return [
        rows.with_names(row, name, cell.suite.label)
        for cell in cells
        if cell.task and cell.rows_file.is_file()
        for name in [data_name(cell)]
        for row in read_rows(cell.rows_file)
    ]


def write_results(cells: Iterable[Cell], path: Path) -> list[ResultRow]:
    """Write the rows of all finished cells to one file and return them."""
    found = all_rows(cells)
    if found:
        path.unlink(missing_ok=True)
        write_rows(path, found)
    return found
