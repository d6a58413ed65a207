"""Tables of the README and the model zoo, and the model index, generated from the result rows."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bootmae.report.model_results import OVER_MAE, ModelResult, model_results, row_files, variant_of
from bootmae.report.overview import overview_markdown
from bootmae.report.published import NOT_RUN, measured_at
from bootmae.report.summary import Spread, spread_of
from bootmae.report.tables import escape
from bootmae.report.verdicts import (
    RULE,
    difference_text,
    in_order,
    labels_name,
    method_order,
    signed,
    spread_text,
    task_name,
)
from bootmae.results.names import method_name, model_of
from bootmae.results.rows import ResultRow

from . import comparison, evidence, method_figure, watching
from .curves import comparisons_of, figure_behind
from .markers import Makers, markdown, pages, stale
from .metafile import commands, metafile, model_index

LENGTH = re.compile(r', (\d+ epochs)')  # of the pretraining of a published number
APART = {'demo': 'make demo', 'photographs': 'tools/train.py {config}'}  # files with their own table; command


def paper_text(row: ResultRow | None) -> str:
    """A published number with the length of its pretraining, if stated; marked if it is a gain over MAE."""
    if row is None:
        return ''
    text = f'{signed(row.value, 1)}{OVER_MAE}' if row.metric.endswith(OVER_MAE) else f'{row.value:.1f}'
    length = LENGTH.search(row.protocol)
    return f'{text} ({length[1]})' if length else text


def measured_text(rows: Sequence[ResultRow]) -> str:
    """Mean, spread and number of seeds, or ``not run``."""
    return spread_text(spread_of({row.seed: row.value for row in rows})) if rows else NOT_RUN


def together(values: Iterable[object]) -> str:
    """Distinct values in order of appearance."""
    return ', '.join(dict.fromkeys(str(value) for value in values if value))


def short(commit: str) -> str:
    """First digits of a commit, with the plus of a changed tree."""
    return commit[:7] + '+' * commit.endswith('+')


def gpu_hours(rows: Sequence[ResultRow]) -> str:
    """Mean GPU-hours of the rows that have them."""
    known = [row.gpu_hours for row in rows if row.gpu_hours]
    return f'{sum(known) / len(known):,.1f}' if known else ''


def zoo_table(rows: Sequence[ResultRow], published: Sequence[ResultRow], command: str, root: Path) -> str:
    """One line per model and task, without empty columns.

    Args:
        rows: Result rows.
        published: Published numbers.
        command: Command that produces the numbers, with ``{config}``; empty for full-size configs.
        root: Root of the repository; the page is one folder below it.
    """
    lines = []
    for entry in model_results(_sorted(rows) if command else rows, published):
        row = entry.sample
        made = (
            [command.format(config=entry.config)]
            if command
            else commands(entry.config, row.task, 'multi-scale' in variant_of(row), root)
        )
        lines.append(
            {
                'model': _model(entry),
                'data': row.data,
                'task': _task(row),
                'labels': labels_name(row),
                'metric': row.metric,
                'result': measured_text(entry.rows),
                'published': paper_text(entry.paper),
                'label': together(row.label for row in entry.rows) or NOT_RUN,
                'config': _link(entry.config, root),
                'weights': together(row.checkpoint_hash[:12] for row in entry.rows),
                'commit': together(short(row.commit) for row in entry.rows),
                'device': together(row.device for row in entry.rows),
                'GPU-hours': gpu_hours(entry.rows),
                'command': '<br>'.join(f'`{line}`' for line in made),
            }
        )
    if not lines:
        return '*Nothing yet.*\n'
    heads = [head for head in lines[0] if any(line[head] for line in lines)]
    return markdown(heads, ([line[head] for head in heads] for line in lines))


def _model(entry: ModelResult) -> str:
    """Name of a full-size model or of an untrained config, else of the method."""
    row = entry.sample
    untrained = Path(entry.config).stem if row.method == 'untrained' else ''
    return model_of(entry.config) or untrained or method_name(row.method)


def _sorted(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows sorted by data set, task, labels and method."""
    methods = method_order(rows)
    return in_order(sorted(rows, key=lambda row: methods.index(row.method)))


def _task(row: ResultRow) -> str:
    plain = task_name(row).removesuffix(f' {row.metric}')
    variant = variant_of(row)
    return plain if variant in ('', plain) else f'{plain}, {variant}'


def _link(config: str, root: Path) -> str:
    return f'[{Path(config).stem}](../{config})' if config and (root / config).is_file() else config


def published_markdown(published: Sequence[ResultRow], rows: Sequence[ResultRow]) -> str:
    """Published and reproduced numbers side by side, MAE beside BootMAE."""
    groups: dict[tuple, dict[str, ResultRow]] = {}
    for row in published:
        groups.setdefault((row.data, task_name(row), LENGTH.sub('', row.protocol)), {})[row.method] = row
    lines = []
    for (data, task, protocol), methods in groups.items():
        any_row = next(iter(methods.values()))
        cells = [
            cell
            for method in ('mae', 'bootmae')
            for cell in (
                paper_text(methods.get(method)).removesuffix(OVER_MAE) or '–',
                _reproduced(any_row, method, rows),
            )
        ]
        lines.append([f'{data} {task}, {protocol}', *cells, together(row.config for row in methods.values())])
    heads = ['task', 'MAE, paper', 'MAE, reproduced', 'BootMAE, paper', 'BootMAE, reproduced', 'source']
    return markdown(heads, ([escape(cell) for cell in line] for line in lines))


def _reproduced(row: ResultRow, method: str, rows: Sequence[ResultRow]) -> str:
    """Measured numbers of a method at the place of a published row, one per protocol."""
    if method == 'mae' and row.metric.endswith(OVER_MAE):
        return '–'
    found = [value for _, value in measured_at(rows, replace(row, method=method))]
    texts = [spread_text(value) if isinstance(value, Spread) else difference_text(value) for value in found]
    return '; '.join(texts) or NOT_RUN


def demo_markdown(rows: Sequence[ResultRow]) -> str:
    """The demo's overview, and a line with the provenance of its numbers."""
    comparisons_of(rows)
    facts = [
        together(short(row.commit) for row in rows),
        *(together(getattr(row, name) for row in rows) for name in ('device', 'precision', 'date')),
    ]
    return (
        f'{overview_markdown(rows)}\nPercent: mean ± standard deviation over seeds of pretraining (their number); the '
        'last line is the mean paired difference ± its standard error (number of shared seeds). Bold: above every '
        'other method by the [rule of the report](suite.md#when-a-difference-counts). '
        f'Commit {facts[0]}, {facts[1]}, {facts[2]}, {facts[3]}.\n'
    )


def makers(files: dict[str, list[ResultRow]], root: Path) -> Makers:
    """Generators of the tables between the markers ``zoo: NAME``, from the rows by file."""
    published, full = files.get('published', []), full_size(files)
    apart = {name: files.get(name, []) for name in APART}
    return {
        'rule': lambda: f'{RULE}\n',
        'published': lambda: published_markdown(published, full),
        'overview': lambda: demo_markdown(apart['demo']),
        'full': lambda: zoo_table(full, published, '', root),
        **{name: lambda name=name: zoo_table(apart[name], [], APART[name], root) for name in APART},
        'watching': lambda: watching.table(root),
        **evidence.makers(root),
        **comparison.makers(root),
    }


def full_size(files: dict[str, list[ResultRow]]) -> list[ResultRow]:
    """Rows of all files without their own table.

    Raises:
        ValueError: Two files have the same measurement, of which a table would show one.
    """
    found: dict[tuple, tuple[str, ResultRow]] = {}
    for name, rows in files.items():
        for row in rows if name not in ('published', *APART) else ():
            first, _ = found.setdefault(row.key, (name, row))
            if first != name:
                raise ValueError(
                    f'results/{first}.csv and results/{name}.csv have the same row ({", ".join(map(str, row.key))}); '
                    'delete one of the two'
                )
    return [row for _, row in found.values()]


def pages_behind(root: str | Path) -> dict[Path, str]:
    """Pages and figures of a repository that are out of date, with their new text.

    Raises:
        ValueError: A row or a marker is wrong; names the file.
    """
    root = Path(root)
    figures = figure_behind(root, evidence.curve_files(root))
    tables = stale(pages(root), 'zoo', makers(row_files(root / 'results'), root))
    return tables | figures | method_figure.figures_behind(root)


def index_behind(root: str | Path) -> dict[Path, str]:
    """Files of the model index that are out of date, with their new text."""
    root = Path(root)
    texts = {
        root / 'metafile.yml': metafile(full_size(row_files(root / 'results')), root),
        root / 'model-index.yml': model_index(),
    }
    return {
        path: text for path, text in texts.items() if not path.is_file() or path.read_text(encoding='utf-8') != text
    }


def behind(root: str | Path) -> dict[Path, str]:
    """All files that are out of date, with their new text."""
    return pages_behind(root) | index_behind(root)
