"""The config of a cell, and the result rows of finished cells."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config

from ..config.load import load_config
from ..evaluation import rows
from ..evaluation.probe import chosen_blocks
from ..models.vit import resolve_arch
from ..results.rows import ResultRow, read_rows, write_rows
from .cells import Cell


def cell_config(cell: Cell) -> Config:
    """The config of a cell with its options. The ``blocks`` of a task are part of it, and therefore of its hash.

    Raises:
        ValueError: A block that the encoder does not have, or a validation set that is not the test set although the
            last validation would be the result.
    """
    cfg = load_config(cell.config, cell.options)
    if cell.task and cell.trains and not cell.task.test and _images_of(cfg, 'val') != _images_of(cfg, 'test'):
        raise ValueError(
            f'{cell.suite.path}, tasks.{cell.task.name}: {cell.config} validates on other data than it tests on, and '
            'the last validation would be the result; give the task "test: true"'
        )
    if cell.task and cell.task.blocks:
        try:
            cfg.blocks = chosen_blocks(cell.task.blocks, resolve_arch(cfg.model.backbone.arch)['depth'])
        except ValueError as error:
            raise ValueError(f'{cell.suite.path}, tasks.{cell.task.name}: {error}') from None
        cfg.model.backbone.depth = cfg.blocks[-1]  # as tools/knn.py builds it
    return cfg


def _images_of(cfg: Config, split: str) -> dict:
    dataset = cfg[f'{split}_dataloader'].dataset.to_dict()
    return {key: value for key, value in dataset.items() if key not in ('pipeline', 'test_mode')}


def data_name(cell: Cell, cfg: Config) -> str:
    """Name of a cell's test data.

    Raises:
        ValueError: Neither the suite file nor the config gives one.
    """
    try:
        return cell.data or rows.data_name(cfg)
    except ValueError as error:
        raise ValueError(f'{cell.suite.path}, tasks.{cell.task.name}.data: {error}') from None


def all_rows(cells: Iterable[Cell]) -> list[ResultRow]:
    """Rows of all finished cells, in order."""
    return [row for cell in cells if cell.task and cell.rows_file.is_file() for row in read_rows(cell.rows_file)]


def write_results(cells: Iterable[Cell], path: Path) -> list[ResultRow]:
    """Write the rows of all finished cells to one file and return them."""
    found = all_rows(cells)
    if found:
        path.unlink(missing_ok=True)
        write_rows(path, found)
    return found
