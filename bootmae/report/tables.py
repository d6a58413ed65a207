"""Tables of the report: for the page, for Markdown and for the terminal."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..results.names import method_name
from ..results.rows import COLUMNS, TYPES, ResultRow
from .summary import Comparison, block_of, by_blocks, summarize
from .verdicts import (
    DENSE_TASKS,
    MINUS_MAE,
    against_mae,
    best_method,
    difference_text,
    in_order,
    labels_amount,
    labels_name,
    method_order,
    rivals,
    spread_text,
    task_name,
)

SHOWN = ('data', 'method', 'task', 'metric', 'value', 'seed')  # columns of every table of rows


@dataclass(frozen=True)
class TableCell:
    """One table cell: its text, sort key (None sorts last), and whether it is bold."""

    text: str
    sort: float | str | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: Short name for screen readers and anchors.
        columns: Heading, and whether the column contains numbers.
        rows: Cells of every row, one per column.
        wide: Whether it is wider than the text.
    """

    name: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[TableCell, ...], ...]
    wide: bool = False


def word(text: str, strong: bool = False) -> TableCell:
    """A cell that sorts by its text."""
    return TableCell(text, text.lower() or None, strong)


def number(value: float, text: str, strong: bool = False) -> TableCell:
    """A cell that sorts by its number; NaN becomes a dash."""
    return TableCell(text, value, strong) if math.isfinite(value) else TableCell('–')


def labels_cell(labels: str, text: str) -> TableCell:
    """Number of labels, with ``all`` as the largest."""
    amount = labels_amount(labels)
    return TableCell(text, None if math.isnan(amount) else min(amount, 1e12))


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per comparison, one column per method; bold if a method is above all others by the rule.

    The block of frozen features has a column if several blocks were evaluated.
    """
    methods, blocks = method_order(comparisons), any(len(group) > 1 for group in by_blocks(comparisons))
    columns = [('Data', False), ('Task', False), ('Labels', True), *[('Block', True)] * blocks]
    columns += [(method_name(method), True) for method in methods]
    paired = ['bootmae', *(method for method in rivals(methods) if method != 'bootmae')]
    columns += [*((MINUS_MAE.format(method_name(method)), True) for method in paired), ('Protocol', False)]
    rows = []
    for item in comparisons:
        best = best_method(item)
        cells = [word(item.data), word(task_name(item)), labels_cell(item.labels, labels_name(item))]
        cells += [number(block_of(item) or math.nan, str(block_of(item)))] * blocks
        for method in methods:
            spread = item.methods.get(method)
            cells.append(number(spread.mean, spread_text(spread), method == best) if spread else TableCell('–'))
        gaps = [against_mae(item, method) for method in paired]
        cells += [
            number(gap.difference.mean, difference_text(gap.difference)) if gap else TableCell('–') for gap in gaps
        ]
        rows.append((*cells, word(item.protocol)))
    return Table('comparison', tuple(columns), tuple(rows))


def pretraining_runs(rows: Sequence[ResultRow]) -> list[list[ResultRow]]:
    """Measured rows grouped by pretraining, which many evaluations share."""
    runs: dict[tuple, list[ResultRow]] = {}
    for row in _dense_last(rows):
        if row.images or row.seconds:
            weights = (
                row.checkpoint_hash or row.data
            )  # without a hash only rows of the same data set belong to one run for certain
            runs.setdefault((row.method, row.seed, weights, row.config), []).append(row)
    return list(runs.values())


def _dense_last(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Measured rows, segmentation and detection last, because their encoder may come from other data."""
    return sorted((row for row in rows if row.measured), key=lambda row: row.task in DENSE_TASKS)


def _data_of(rows: Sequence[ResultRow]) -> list[str]:
    return list(dict.fromkeys(row.data for row in rows))


def cost_table(rows: Sequence[ResultRow]) -> Table:
    """Time, images, speed, memory and GPU-hours of every pretraining; the last two only if known."""
    runs = pretraining_runs(rows)
    memory, hours = (any(getattr(row, name) for run in runs for row in run) for name in ('memory', 'gpu_hours'))
    columns = [
        ('Judged on', False),
        ('Method', False),
        ('Seed', True),
        ('Seconds', True),
        ('Images seen', True),
        ('Images/s', True),
        *[('Memory, GiB', True)] * memory,
        *[('GPU-hours', True)] * hours,
        ('Precision', False),
        ('Device', False),
    ]
    body = []
    for run in runs:
        row, most = run[0], max(row.memory for row in run)
        speed = row.images / row.seconds if row.seconds and row.images else math.nan
        body.append(
            (
                word(', '.join(_data_of(run))),
                word(method_name(row.method)),
                number(row.seed, str(row.seed)),
                number(row.seconds or math.nan, f'{row.seconds:,.0f}'),
                number(row.images or math.nan, f'{row.images:,}'),
                number(speed, f'{speed:,.0f}'),
                *[number(most or math.nan, f'{most:.1f}')] * memory,
                *[_hours(run)] * hours,
                word(row.precision),
                word(row.device),
            )
        )
    return Table('cost', tuple(columns), tuple(body))


def _hours(run: Sequence[ResultRow]) -> TableCell:
    """GPU-hours of a pretraining plus one of its evaluations, from the cheapest to the most expensive."""
    known = [row.gpu_hours for row in run if row.gpu_hours]
    if not known:
        return TableCell('–')
    return number(min(known), ' to '.join(dict.fromkeys(f'{value:,.1f}' for value in (min(known), max(known)))))


def cost_sentences(rows: Sequence[ResultRow]) -> list[str]:
    """For every data set: whether both methods had the same budget of images, and how their times compare.

    A data set whose pretrainings an earlier sentence covers gets no sentence.
    """
    runs = [(_data_of(run), run[0]) for run in pretraining_runs(rows)]
    sentences, told = [], set()
    for name in dict.fromkeys(name for data, _ in runs for name in data):
        group = [row for data, row in runs if name in data]
        ours = [row for row in group if row.method == 'bootmae']
        mae = [row for row in group if row.method == 'mae']
        if ours and mae and not told.issuperset(map(id, group)):
            told.update(map(id, group))
            sentences.append(f'{name}: {_budget(ours, mae)}{_time(ours, mae)}.')
    return sentences


def _budget(ours: Sequence[ResultRow], mae: Sequence[ResultRow]) -> str:
    seen = [sorted({row.images for row in group}) for group in (ours, mae)]
    if 0 in seen[0] + seen[1]:
        return 'the number of images seen is not known for every run'
    if seen[0] == seen[1] and len(seen[0]) == 1:
        return f'both methods saw the same number of images ({seen[0][0]:,} a run)'
    texts = [' or '.join(f'{count:,}' for count in counts) for counts in seen]
    return f'the budgets differ, BootMAE saw {texts[0]} images a run and MAE {texts[1]}, so this is no equal comparison'


def _time(ours: Sequence[ResultRow], mae: Sequence[ResultRow]) -> str:
    if not all(row.seconds for row in (*ours, *mae)):
        return ''
    if len({row.device for row in (*ours, *mae)}) > 1:
        return '; the times are from different devices and are not compared'
    first, second = (statistics.fmean(row.seconds for row in group) for group in (ours, mae))
    return (
        f'; BootMAE took {first / second:.2f} times the time of MAE '
        f'({first:,.0f} s against {second:,.0f} s, mean over runs)'
    )


def rows_table(rows: Sequence[ResultRow]) -> Table:
    """All rows with the columns that differ; :func:`constants` has the others."""
    same = _same(rows)
    names = [name for name in COLUMNS if name not in same]
    columns = tuple((name.replace('_', ' '), TYPES[name] is not str) for name in names)
    body = tuple(tuple(_raw(row, name) for name in names) for row in rows)
    return Table('all rows', columns, body, wide=True)


def constants(rows: Sequence[ResultRow]) -> list[tuple[str, str]]:
    """Name and text of the columns that are equal in all rows, without empty ones."""
    cells = [(name.replace('_', ' '), _raw(rows[0], name).text) for name in _same(rows)]
    return [(name, text) for name, text in cells if text not in ('', '–')]


def _same(rows: Sequence[ResultRow]) -> list[str]:
    """Columns with a single value, except those that every table shows; none for a single row."""
    if len(rows) < 2:
        return []
    return [name for name in COLUMNS if name not in SHOWN and len({str(getattr(row, name)) for row in rows}) == 1]


def _raw(row: ResultRow, name: str) -> TableCell:
    value = getattr(row, name)
    if name == 'labels':
        return labels_cell(value, value)
    if name == 'value':
        return number(value, f'{value:.2f}')
    if name == 'seconds':
        return number(value, f'{value:,.1f}')
    if name in ('gpu_hours', 'memory'):
        return number(value, f'{value:,.2f}') if value else TableCell('–')
    if name == 'images':
        return number(value, f'{value:,}')
    if name == 'checkpoint_hash':
        return TableCell(value[:12], value or None)
    return number(value, str(value)) if name == 'seed' else word(value)


def checkpoint_table(rows: Sequence[ResultRow]) -> Table:
    """The evaluated weights with their hashes."""
    found = {}
    for row in _dense_last(rows):
        if row.checkpoint or row.checkpoint_hash:
            found.setdefault((row.checkpoint, row.checkpoint_hash), []).append(row)
    columns = (('Judged on', False), ('Method', False), ('Seed', True), ('Checkpoint', False), ('Hash', False))
    body = tuple(
        (
            word(', '.join(_data_of(group))),
            word(method_name(group[0].method)),
            number(group[0].seed, str(group[0].seed)),
            word(group[0].checkpoint),
            word(group[0].checkpoint_hash),
        )
        for group in found.values()
    )
    return Table('checkpoints', columns, body)


def _plain(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]], Table]:
    """Headings and texts of the comparison, with the protocol only if it tells two rows apart."""
    table = comparison_table(in_order(summarize(rows)))
    body = [[cell.text for cell in cells] for cells in table.rows]
    heads = [name for name, _ in table.columns]
    if len({tuple(cells[:3]) for cells in body}) == len(body):
        heads, body = heads[:-1], [cells[:-1] for cells in body]
    return heads, body, table


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """Comparison of the measured rows as a Markdown table, in percent, best in bold as on the page."""
    heads, body, table = _plain(rows)
    strong = [
        [f'**{text}**' if cell.strong else text for text, cell in zip(texts, cells, strict=False)]
        for texts, cells in zip([[escape(t) for t in line] for line in body], table.rows, strict=True)
    ]
    rule = ['---:' if numeric else '---' for _, numeric in table.columns[: len(heads)]]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [heads, rule, *strong]) + '\n'


def escape(text: str) -> str:
    return text.replace('\\', '\\\\').replace('|', '\\|').replace('*', '\\*').replace('<', '&lt;')


def text_table(rows: Sequence[ResultRow]) -> str:
    """Comparison of the measured rows for the terminal, in percent; a single line if nothing was measured."""
    heads, body, table = _plain(rows)
    if not body:
        return 'no measured rows\n'
    rule = ['-' * max(map(len, column)) for column in zip(heads, *body, strict=True)]
    right = [place for place, (_, numeric) in enumerate(table.columns) if numeric]
    return align_columns([heads, rule, *body], right) + '\n'


def align_columns(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns of text, two spaces apart; the columns numbered in ``right`` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
