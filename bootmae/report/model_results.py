"""Results of models on tasks: rows joined with published numbers and with the configs that produce them.

A full-size config without a run has a row labeled ``not run``, which names the config to run. A measured row names the
config of its pretraining; the config of the evaluation follows from that and from the task.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..results.names import MODEL, model_of
from ..results.rows import COLUMNS, ResultRow, read_rows

OVER_MAE = ' over MAE'
VARIANTS = (
    'multi-scale',
    'ViTDet',
    'logistic regression',
)  # protocols whose numbers must not be mixed with the plain task's
CONFIGS = {
    'knn': 'pretrain/{}.py',
    'linear': 'cls/{}_linear.py',
    'finetune': 'cls/{}_finetune.py',
    'segmentation': 'seg/{}_upernet.py',
    'detection': 'det/{}_maskrcnn_1x.py',
    'ViTDet': 'det/{}_vitdet.py',
}
FIRST = ('published', 'full_size')


@dataclass(frozen=True)
class Place:
    """What a published number, a measured one and a row labeled ``not run`` have in common."""

    data: str
    method: str
    size: str
    task: str
    labels: str
    metric: str
    variant: str


@dataclass
class ModelResult:
    """Result of one model on one task.

    Attributes:
        sample: Any of its rows.
        config: Config that produces the number; empty if the repository has none.
        rows: Measured rows, one per seed; empty if it was not run.
        paper: The published number.
    """

    sample: ResultRow
    config: str
    rows: list[ResultRow] = field(default_factory=list)
    paper: ResultRow | None = None


def row_files(folder: str | Path) -> dict[str, list[ResultRow]]:
    """Rows by file stem, published and full-size ones first; other CSV files are skipped.

    Raises:
        ValueError: A file of result rows has wrong columns or an unreadable row.
    """
    paths = sorted(Path(folder).glob('*.csv'), key=lambda path: (path.stem not in FIRST, path.stem))
    return {path.stem: read_rows(path) for path in paths if _holds_rows(path)}


def _holds_rows(path: Path) -> bool:
    with path.open(newline='', encoding='utf-8') as file:
        return next(csv.reader(file), [])[:3] == list(COLUMNS[:3])


def variant_of(row: ResultRow) -> str:
    """How the protocol differs from the plain task; empty if it does not."""
    text = f'{row.protocol} {row.config}'.lower()
    return ', '.join(name for name in VARIANTS if name.lower() in text)


def place_of(row: ResultRow, method: str | None = None) -> Place:
    """The place of a row, or the same place for another method."""
    found = MODEL.match(Path(row.config).name)
    size = f'ViT-{found[1].upper()}' if found else ''.join(re.findall(r'^ViT-\w+', row.protocol))
    return Place(
        row.data, method or row.method, size, row.task, row.labels, row.metric.removesuffix(OVER_MAE), variant_of(row)
    )


def config_of(row: ResultRow) -> str:
    """The config that produces a row's number: that of the evaluation if known, else of the pretraining."""
    model, variant = model_of(row.config), variant_of(row)
    if not row.measured or not model or not row.config.startswith('configs/pretrain/') or 'logistic' in variant:
        return row.config
    name = CONFIGS.get('ViTDet' if 'ViTDet' in variant else row.task)
    return f'configs/{name.format(model)}' if name else row.config


def model_results(rows: Sequence[ResultRow], published: Sequence[ResultRow] = ()) -> list[ModelResult]:
    """Results by place in order of first appearance; each protocol at a place is a result of its own.

    A row labeled ``not run`` counts only if nothing was measured.
    """
    papers = {place_of(row): row for row in published}
    places = {row: place_of(row) for row in rows}
    order = {place: number for number, place in enumerate(dict.fromkeys(places.values()))}
    measured = {place for row, place in places.items() if row.measured}
    found: dict[tuple, ModelResult] = {}
    for row, place in places.items():
        if row.measured or place not in measured:
            key = place, row.protocol, config_of(row)
            entry = found.setdefault(key, ModelResult(row, config_of(row), paper=papers.get(place)))
            entry.rows += [row] if row.measured else []
    return [found[key] for key in sorted(found, key=lambda key: order[key[0]])]
