"""Checks of the files that a command writes at its end, made before its work."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..evaluation.rows import trained_columns
from ..results.rows import read_rows


def check_writable(path: str) -> None:
    """Raise an error that names a file which cannot be written; missing folders can be created."""
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder: give a file')
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f'{path} cannot be written, because {above} is a file: give a file in a folder')
    if not os.access(above, os.W_OK):
        raise ValueError(f'{path} cannot be written: you may not write to {above}; give another file')


def check_work_dir(work_dir: str | None, options: Mapping[str, Any] | None) -> None:
    """Raise an error if the work directory is given twice."""
    if work_dir and 'work_dir' in (options or {}):
        raise ValueError(
            f'--work-dir {work_dir} and --cfg-options work_dir={(options or {})["work_dir"]}: leave one of them out'
        )


def check_rows(path: str) -> None:
    """Raise an error if result rows cannot be appended to a file."""
    check_writable(path)
    if os.path.exists(path):
        read_rows(path)


def columns_of_rows(cfg: Config, path: str | None, given: Sequence[str], split: str) -> dict[str, Any]:
    """Return the columns of a trained model's rows; empty without a file for them.

    Args:
        cfg: The config, as loaded from its file and ``--cfg-options``.
        path: File of the rows, ``--rows``.
        given: ``--row COLUMN=VALUE``, see :func:`trained_columns`.
        split: The data that give the metrics, ``val`` or ``test``.

    Raises:
        ValueError: The file or a column is wrong, the config has no such data, or there are columns without a file.
    """
    if not path:
        if given:
            raise ValueError(
                f'--row {" ".join(given)} needs --rows FILE.csv, the file of the rows: add it, or leave out --row'
            )
        return {}
    check_rows(path)
    needed = dict.fromkeys(('model', f'{split}_dataloader', f'{split}_evaluator', 'test_dataloader'))
    if missing := [key for key in needed if not cfg.get(key)]:
        raise ValueError(
            f'--rows needs the metrics of {split}_dataloader and the name of the test data, but {cfg.filename} has no '
            f'{" and no ".join(missing)}: add them to the config, or leave out --rows'
        )
    return trained_columns(cfg, given)
