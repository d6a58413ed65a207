"""Tables of docs/evidence.md and HTML reports, from the rows in results/evidence/."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import yaml

from bootmae.report.page import write_page
from bootmae.report.verdicts import (
    MINUS_MAE,
    against_mae,
    best_method,
    difference_text,
    labels_name,
    method_order,
    protocol_name,
    rivals,
    spread_text,
    task_name,
)
from bootmae.results.names import method_name
from bootmae.results.rows import ResultRow, read_rows

from .curves import IMAGE, TEXT, comparisons_of, last_blocks
from .markers import Makers, markdown

FOLDER = Path('results', 'evidence')
SUITES = (
    'evidence_screening',
    'evidence_screening_2',
    'evidence',
    'evidence_epochs',
    'evidence_why',
    'evidence_depth',
    'cifar10_choice',
    'cifar10',
    'ablations',
    'camvid',
    'digit_scenes',
    'continued_demo',
)
SIZES = ('', '_cpu')  # suffixes of the row files
MISSING = '*Not run yet.*\n'
CURVES = ('evidence', 'evidence_epochs')  # suites whose rows the figure shows


def comparison_table(rows: Sequence[ResultRow]) -> str:
    """One line per measurement, one column per method, and the paired differences to MAE with their outcome."""
    comparisons = comparisons_of(rows)
    methods = method_order(comparisons)
    others = rivals(methods)
    lines = []
    for item in comparisons:
        best = best_method(item)
        values = [spread_text(item.methods[name]) if name in item.methods else '–' for name in methods]
        values = [f'**{text}**' if name == best else text for name, text in zip(methods, values, strict=True)]
        found = [against_mae(item, name) for name in others]
        lines.append(
            [
                task_name(item),
                labels_name(item),
                protocol_name(item),
                *values,
                *(f'{difference_text(judged.difference)}, {judged.outcome}' if judged else '–' for judged in found),
            ]
        )
    heads = [
        'task',
        'labels',
        'protocol',
        *map(method_name, methods),
        *(MINUS_MAE.format(method_name(name)) for name in others),
    ]
    return markdown(heads, lines)


def methods_table(rows: Sequence[ResultRow]) -> str:
    """One line per method, one column per measurement: for many methods."""
    comparisons = comparisons_of(rows)
    heads = [', '.join(filter(None, [task_name(item), protocol_name(item)])) for item in comparisons]
    heads = [
        head if heads.count(head) == 1 else f'{head}, {labels_name(item)}'
        for head, item in zip(heads, comparisons, strict=True)
    ]
    lines = [
        [method_name(name), *(spread_text(item.methods[name]) if name in item.methods else '–' for item in comparisons)]
        for name in method_order(comparisons)
    ]
    return markdown(['method', *heads], lines)


def cost_table(rows: Sequence[ResultRow]) -> str:
    """Cost of a suite's pretrainings, with the commit and machine of its rows."""
    lines = []
    for method in method_order(rows):
        own = [row for row in rows if row.method == method]
        runs = {row.seed: row for row in own if row.seconds}
        if runs:
            seconds, images = (mean(getattr(row, name) for row in runs.values()) for name in ('seconds', 'images'))
            cost = [
                f'{images:,.0f}',
                f'{seconds / 60:.1f}',
                f'{images / seconds:,.0f}',
                f'{max(row.memory for row in runs.values()):.1f}',
            ]
        else:
            cost = ['–'] * 4
        lines.append(
            [
                method_name(method),
                ', '.join(map(str, sorted({row.seed for row in own}))),
                *cost,
                *(
                    ', '.join(sorted({getattr(row, name) for row in own} - {''}))
                    for name in ('commit', 'device', 'precision', 'date')
                ),
            ]
        )
    return markdown(
        [
            'method',
            'seeds',
            'images seen',
            'minutes of pretraining',
            'images/s',
            'memory (GiB)',
            'commit',
            'device',
            'precision',
            'date',
        ],
        lines,
    )


def makers(root: Path) -> Makers:
    """Generators of the parts of docs/evidence.md by marker, such as ``evidence/cifar10``."""
    names = [suite + size for suite in SUITES for size in SIZES]
    kinds = {
        'evidence': comparison_table,
        'result': lambda rows: comparison_table(last_blocks(rows)),
        'methods': methods_table,
        'trials': lambda rows: methods_table(last_blocks(rows)),
        'cost': cost_table,
    }
    return {
        f'{kind}/{name}': partial(_table, root / FOLDER / f'{name}.csv', table)
        for name in names
        for kind, table in kinds.items()
    } | {'curves/evidence': partial(_curves, root)}


def _table(path: Path, table: Callable[[Sequence[ResultRow]], str]) -> str:
    return table(read_rows(path)) if path.is_file() else MISSING


def curve_files(root: Path) -> list[Path]:
    """Files of rows that the figure shows."""
    return [root / FOLDER / f'{name}.csv' for name in CURVES]


def _curves(root: Path) -> str:
    """The line that shows the figure."""
    path = IMAGE.relative_to('docs')
    return f'![{TEXT}]({path.as_posix()})\n' if any(map(Path.is_file, curve_files(root))) else MISSING


def write_reports(root: Path, folder: Path) -> list[Path]:
    """Write one HTML report per file of result rows, with title and notes of its suite; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    for path in sorted((root / FOLDER).glob('*.csv')):
        suite = yaml.safe_load((root / 'suites' / f'{path.stem.removesuffix("_cpu")}.yaml').read_text(encoding='utf-8'))
        rows, notes = read_rows(path), suite.get('notes', ())
        reports.append(write_page(folder / f'{path.stem}.html', suite['title'], rows, notes=notes))
    return reports
