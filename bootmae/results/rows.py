"""Result rows: one measured or published number each, stored in a CSV file."""

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ..files import write_file
from ..places import REPOSITORY
from ..text import count_of

LABELS = ('reproduced', 'measured', 'demo', 'paper', 'not run')
MEASURED = ('reproduced', 'measured', 'demo')
IDENTITY = ('data', 'method', 'task', 'labels', 'metric', 'seed', 'protocol')
REPAIR = 'repair or delete this line'
PUBLISHED = REPOSITORY / 'results' / 'published.csv'


@dataclass(frozen=True)
class ResultRow:
    """One number and what is needed to interpret and reproduce it.

    Attributes:
        data: Name of the data set, such as ``digits``.
        method: Method of the encoder: ``untrained``, ``mae``, ``bootmae`` or another name.
        task: Evaluation of the encoder: ``knn``, ``linear``, ``finetune``, ``segmentation``, ``detection`` or another
            name. ``linear`` is a linear probe, or logistic regression on frozen features if ``protocol`` says so.
        labels: ``all`` or the number of labeled images, per class (in total for segmentation and detection).
        metric: Name of the number, such as ``accuracy``, ``mIoU`` or ``box AP``; higher is better.
        value: The number in percent; NaN only if ``label`` is ``not run``.
        seed: Seed of pretraining and evaluation; -1 if a publication does not state it.
        protocol: Details of the evaluation that rows must share to be comparable.
        config: Config file of the pretraining, or the source of a published number.
        checkpoint: File name of the evaluated weights.
        checkpoint_hash: Hash of these weights.
        commit: Commit of the code.
        device: Device that ran it.
        precision: Precision of the pretraining, such as ``float32``.
        seconds: Wall-clock seconds of the pretraining; 0 if unknown or untrained.
        images: Images that the pretraining processed, with repetitions; 0 if unknown or untrained.
        date: ISO date of the evaluation.
        label: ``reproduced`` (a model of the papers on their data), ``measured``, ``demo``, ``paper`` or ``not run``.
        config_hash: Hash of the evaluation's config with all overrides but without the seed.
        data_hash: Fingerprint of the test images and annotations.
        gpu_hours: GPU-hours of pretraining and evaluation together; 0 on a CPU or if unknown.
        memory: Peak memory of the pretraining in GiB (GPU, or resident on a CPU); 0 if unknown or untrained.
    """

    data: str
    method: str
    task: str
    labels: str
    metric: str
    value: float
    seed: int
    protocol: str = ''
    config: str = ''
    checkpoint: str = ''
    checkpoint_hash: str = ''
    commit: str = ''
    device: str = ''
    precision: str = ''
    seconds: float = 0.0
    images: int = 0
    date: str = ''
    label: str = 'measured'
    config_hash: str = ''
    data_hash: str = ''
    gpu_hours: float = 0.0
    memory: float = 0.0

    @property
    def key(self) -> tuple:
        """Identity of the measurement; a new row replaces an old one with the same key."""
        return tuple(getattr(self, name) for name in IDENTITY)

    @property
    def measured(self) -> bool:
        """Whether the number was measured with this code."""
        return self.label in MEASURED


COLUMNS = tuple(field.name for field in fields(ResultRow))
TYPES: dict[str, Any] = {field.name: field.type for field in fields(ResultRow)}


def problem_of(row: ResultRow) -> tuple[str, str] | None:
    """First column with an impossible value and the problem; None if all are possible."""
    if row.label not in LABELS:
        return 'label', f'{row.label!r} is none of {", ".join(LABELS)}'
    if not math.isfinite(row.value) and row.label != 'not run':
        return 'value', f'{row.value} is not a finite number; a missing result has the label "not run"'
    for name, kind in (('seconds', 'a duration'), ('gpu_hours', 'a duration'), ('memory', 'an amount of memory')):
        value = getattr(row, name)
        if not (math.isfinite(value) and value >= 0):
            return name, f'{value} is not {kind}'
    if row.images < 0:
        return 'images', f'{row.images} is not a number of images'
    return None


def read_rows(path: str | Path) -> list[ResultRow]:
    """Rows of a CSV file in file order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Wrong columns, an unreadable value, or a measurement that occurs twice, of which a table would show
            one; names file, line, column and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such results file; run an evaluation first or correct the path')
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            raise ValueError(f'{path}, line 1: {_header_problem(header)}; the header must be {",".join(COLUMNS)}')
        rows, lines = [], {}
        for cells in filter(None, reader):
            row = _parse(cells, f'{path}, line {reader.line_num}')
            first = lines.setdefault(row.key, reader.line_num)
            if first != reader.line_num:
                same = f'{", ".join(IDENTITY)} are those of line {first}'
                raise ValueError(f'{path}, line {reader.line_num}: {same}; delete one of the two lines')
            rows.append(row)
        return rows


def _header_problem(header: Sequence[str]) -> str:
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    parts = []
    if missing:
        parts.append(f'missing columns {", ".join(missing)}')
    if unknown:
        parts.append(f'unknown columns {", ".join(unknown)}')
    return ' and '.join(parts) or 'columns repeated or in another order'


def _parse(cells: Sequence[str], place: str) -> ResultRow:
    if len(cells) != len(COLUMNS):
        raise ValueError(f'{place}: {count_of(len(cells), "cell")} instead of {len(COLUMNS)}; {REPAIR}')
    values = {}
    for name, text in zip(COLUMNS, cells, strict=True):
        try:
            values[name] = TYPES[name](text)
        except ValueError:
            kind = 'a whole number' if TYPES[name] is int else 'a number'
            raise ValueError(f'{place}, column {name}: {text!r} is not {kind}; {REPAIR}') from None
    row = ResultRow(**values)
    problem = problem_of(row)
    if problem:
        raise ValueError(f'{place}, column {problem[0]}: {problem[1]}; {REPAIR}')
    return row


def write_rows(path: str | Path, rows: Iterable[ResultRow]) -> None:
    """Add rows to a CSV file, replacing rows with the same key; the write is atomic.

    A row that replaces one of other weights gets a warning on stderr.

    Two processes must not write to one file at the same time: rows of one would be lost.

    Raises:
        ValueError: A row holds an impossible value, or the existing file cannot be read.
    """
    path = Path(path)
    merged = {row.key: row for row in (read_rows(path) if path.exists() else [])}
    for row in rows:
        problem = problem_of(row)
        if problem:
            raise ValueError(f'result row {row.key}, column {problem[0]}: {problem[1]}')
        if (old := merged.get(row.key)) and old.checkpoint_hash != row.checkpoint_hash:
            print(
                f'warning: {path}: the row {", ".join(map(str, row.key))} of the weights '
                f'{old.checkpoint_hash or "(no hash)"} is replaced by one of the weights '
                f'{row.checkpoint_hash or "(no hash)"}; to keep both, use another file or another method name',
                file=sys.stderr,
            )
        merged[row.key] = row
    buffer = io.StringIO(newline='')
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in merged.values())
    replace_file(path, buffer.getvalue())


def replace_file(path: str | Path, text: str) -> None:
    """Write a text file atomically (temporary file, fsync, rename)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write_bytes(text.encode()))


def published_rows(path: str | Path = PUBLISHED) -> list[ResultRow]:
    """Published numbers, in percent or points.

    Empty if the package was installed without the repository's results.

    Raises:
        ValueError: A row of the file is labeled as something else, or the file cannot be read.
    """
    rows = read_rows(path) if Path(path).is_file() else []
    wrong = [row for row in rows if row.label != 'paper']
    if wrong:
        raise ValueError(
            f'{path}: {wrong[0].key} is labeled {wrong[0].label!r}; this file is for published '
            'numbers with the label "paper"'
        )
    return rows
