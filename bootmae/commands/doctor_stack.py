"""Which stacks other than the lock's were tested: the rows of results/matrix.csv, written by tools/matrix.py.

Part of the doctor: nothing but the standard library is imported.
"""

from __future__ import annotations

import csv
import platform
from pathlib import Path

COLUMNS = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')


def stacks(table: Path) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Each row of the table that has all packages, newest first, and its packages: version by name."""
    if not table.is_file():
        return []
    with table.open(newline='', encoding='utf-8') as file:
        rows = [row for row in csv.DictReader(file) if all(' ' in (row[column] or '') for column in COLUMNS)]
    return [(row, dict(row[column].split(' ') for column in COLUMNS)) for row in reversed(rows)]


def tested_stack(table: Path, installed: dict[str, str], locked: dict[str, str]) -> tuple[str, set[str]]:
    """Whether the quick tests passed on the installed packages, which are not those of the lock.

    Args:
        table: results/matrix.csv.
        installed: version of each package, by normal name.
        locked: the same as the lock wants it.

    Returns:
        What to say of the stack and the names of all packages that may be in one; ``('', set())`` where it is the
        lock's, or was not tested, or did not pass.
    """
    found = stacks(table)
    names = set().union(*(versions for _, versions in found)) if found else set()
    python = platform.python_version().rpartition('.')[0]

    def version(name: str) -> str:
        return installed.get(name, '').partition('+')[0]

    if all(version(name) == locked[name] for name in names if name in locked):
        return '', set()
    for row, versions in found:
        fits = all(version(name) == wanted.partition('+')[0] for name, wanted in versions.items())
        if fits and row['verdict'] == 'passes' and row['python'].rpartition('.')[0] == python:
            listed = ', '.join(f'{name} {wanted}' for name, wanted in versions.items())
            return f'not the locked versions, tested on {row["date"]}: {listed}', names
    return '', set()
