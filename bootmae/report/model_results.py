"""Models at tasks: result rows joined with the published numbers and the configs that make them.

A full-size config that nobody has run yet has a row with the label ``not run``, whose config is the one to run. A
measured row names the config of its pretraining; the config that judged it follows from that and from the task.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..results.rows import COLUMNS, ResultRow, read_rows

OVER_MAE = ' over MAE'
VARIANTS = ('multi-scale', 'ViTDet', 'logistic regression')  # of a task: other numbers than those of the plain one
CONFIGS = {
    'knn': 'pretrain/{}.py',
    'linear': 'cls/{}_linear.py',
    'finetune': 'cls/{}_finetune.py',
    'segmentation': 'seg/{}_upernet.py',
    'detection': 'det/{}_maskrcnn_1x.py',
    'ViTDet': 'det/{}_vitdet.py',
}
MODEL = re.compile(r'[a-z0-9]+_vit([a-z])(?=_|\.py)')  # bootmae_vitb in configs/cls/bootmae_vitb_finetune.py
FIRST = ('published', 'full_size')


@dataclass(frozen=True)
class Place:
    """What agrees between a published number, the measured one and the row that says ``not run``."""

    data: str
    method: str
    size: str
    task: str
    labels: str
    metric: str
    variant: str


@dataclass
class ModelResult:
    """One model at one task.

    Attributes:
        config: the config that makes the number; empty where no file of the repository does.
        rows: measured ones, a seed each; none where it was not run.
        paper: the published number.
        sample: any row of it.
    """

    sample: ResultRow
    config: str
    rows: list[ResultRow] = field(default_factory=list)
    paper: ResultRow | None = None


def row_files(folder: str | Path) -> dict[str, list[ResultRow]]:
    """Rows by file name without ending, published and full-size ones first; files of something else are left out.

    Raises:
        ValueError: a file of result rows has other columns or a row that cannot be read.
    """
    paths = sorted(Path(folder).glob('*.csv'), key=lambda path: (path.stem not in FIRST, path.stem))
    return {path.stem: read_rows(path) for path in paths if _holds_rows(path)}


def _holds_rows(path: Path) -> bool:
    with path.open(newline='', encoding='utf-8') as file:
        return next(csv.reader(file), [])[:3] == list(COLUMNS[:3])


def model_of(config: str) -> str:
    """``bootmae_vitb`` for each full-size config of that model, else empty."""
    found = MODEL.match(Path(config).name)
    return found[0] if found else ''


def variant_of(row: ResultRow) -> str:
    """How a task differs from the plain one of its name."""
    text = f'{row.protocol} {row.config}'.lower()
    return ', '.join(name for name in VARIANTS if name.lower() in text)


def place_of(row: ResultRow, method: str | None = None) -> Place:
    """The place of a row, or the same place of another method."""
    found = MODEL.match(Path(row.config).name)
    size = f'ViT-{found[1].upper()}' if found else ''.join(re.findall(r'^ViT-\w+', row.protocol))
    return Place(
        row.data, method or row.method, size, row.task, row.labels, row.metric.removesuffix(OVER_MAE), variant_of(row)
    )


def config_of(row: ResultRow) -> str:
    """The config that makes a row's number: of the evaluation where it is known, else of the pretraining."""
    model, variant = model_of(row.config), variant_of(row)
    if not row.measured or not model or not row.config.startswith('configs/pretrain/') or 'logistic' in variant:
        return row.config
    name = CONFIGS.get('ViTDet' if 'ViTDet' in variant else row.task)
    return f'configs/{name.format(model)}' if name else row.config


def model_results(rows: Sequence[ResultRow], published: Sequence[ResultRow] = ()) -> list[ModelResult]:
    """Models at tasks, by place in order of first appearance; several protocols at a place are several entries.

    A row that says ``not run`` is an entry only where nothing was measured.
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
