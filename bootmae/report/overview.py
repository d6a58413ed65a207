"""The tasks side by side: one row per method, one column per task, for the page, Markdown and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..results.names import method_name
from ..results.rows import ResultRow
from .summary import Comparison, block_of, summarize
from .tables import escape
from .verdicts import (
    MINUS_MAE,
    against_mae,
    best_method,
    difference_text,
    in_order,
    labels_amount,
    labels_phrase,
    method_order,
    rivals,
    spread_text,
    task_name,
)

WIDTH = 120  # characters of a terminal line


@dataclass(frozen=True)
class OverviewCell:
    """One cell of the overview.

    Attributes:
        text: ``mean ± std (n)``, or ``difference ± standard error (n)``; a dash if there is none.
        strong: Whether the method is above all others by the rule.
        outcome: Outcome of a difference, ``above``, ``level``, ``below`` or ``undecided``; else empty.
    """

    text: str
    strong: bool = False
    outcome: str = ''

    @property
    def parts(self) -> tuple[str, str]:
        """The number and the text behind it."""
        number, _, rest = self.text.partition(' ')
        return number, rest


@dataclass(frozen=True)
class Overview:
    """The table.

    Attributes:
        columns: Data set, task and details (number of labels) of every column; columns of a data set are adjacent.
        rows: Name and cells, first of the methods, then of the differences.
    """

    columns: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[str, tuple[OverviewCell, ...]], ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Data sets and the number of their columns."""
        data = [column[0] for column in self.columns]
        return [(name, data.count(name)) for name in dict.fromkeys(data)]


def overview(comparisons: Sequence[Comparison]) -> Overview:
    """One column per data set, task and metric, with its most informative comparison."""
    chosen = representative_comparisons(comparisons)
    columns = tuple((item.data, task_name(item), _details(item, comparisons)) for item in chosen)
    rows = [(method_name(method), tuple(_cell(item, method) for item in chosen)) for method in method_order(chosen)]
    for method in rivals(method_order(chosen)):
        if any(against_mae(item, method) for item in chosen):
            rows.append((MINUS_MAE.format(method_name(method)), tuple(_difference(item, method) for item in chosen)))
    return Overview(columns, tuple(rows))


def representative_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """One comparison per data set, task and metric.

    It is the one with the most labels; among several protocols the one with the most measurements, then the one of the
    last block, then the first.
    """
    groups: dict[tuple, list[Comparison]] = {}
    for item in in_order(comparisons):
        groups.setdefault((item.data, task_name(item)), []).append(item)
    return [max(group, key=_weight) for group in groups.values()]


def _weight(item: Comparison) -> tuple[float, int, int]:
    amount = labels_amount(item.labels)
    return amount if amount >= 0 else -1.0, sum(spread.n for spread in item.methods.values()), block_of(item)


def _details(item: Comparison, comparisons: Sequence[Comparison]) -> str:
    """Number of labels, and the protocol if there are several."""

    def place(other: Comparison) -> tuple:
        return other.data, task_name(other), other.labels

    several = sum(place(other) == place(item) for other in comparisons) > 1
    return ', '.join(filter(None, [labels_phrase(item), item.protocol if several else '']))


def _cell(item: Comparison, method: str) -> OverviewCell:
    spread = item.methods.get(method)
    return OverviewCell(spread_text(spread), method == best_method(item)) if spread else OverviewCell('–')


def _difference(item: Comparison, method: str) -> OverviewCell:
    found = against_mae(item, method)
    return OverviewCell(difference_text(found.difference), outcome=found.outcome) if found else OverviewCell('–')


def overview_markdown(rows: Sequence[ResultRow]) -> str:
    """Overview of the measured rows as a Markdown table, in percent, best in bold; empty without rows."""
    table = overview(summarize(rows))
    if not table.columns:
        return ''
    heads = ['Method', *('<br>'.join(escape(text) for text in column if text) for column in table.columns)]
    body = [
        [escape(name), *(f'**{entry.text}**' if entry.strong else entry.text for entry in entries)]
        for name, entries in table.rows
    ]
    rule = ['---', *['---:'] * len(table.columns)]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [heads, rule, *body]) + '\n'


def overview_text(rows: Sequence[ResultRow], width: int = WIDTH) -> str:
    """Overview of the measured rows for the terminal, in percent, wrapped between data sets; empty without rows."""
    table = overview(summarize(rows))
    names = ['', '', '', *(name for name, _ in table.rows)]
    labels = _left(names)
    blocks: list[list[str]] = []
    start = 0
    for data, count in table.groups:
        block = _block(table, data, range(start, start + count))
        start += count
        if blocks and len(blocks[-1][0]) + len(block[0]) <= width:
            blocks[-1] = [left + right for left, right in zip(blocks[-1], block, strict=True)]
        else:
            blocks.append([left + right for left, right in zip(labels, block, strict=True)])
    return '\n'.join('\n'.join(line.rstrip() for line in block if line.strip()) + '\n' for block in blocks)


def _block(table: Overview, data: str, columns: Sequence[int]) -> list[str]:
    """Lines of one data set: its name in a rule, the task, the details, then the numbers."""
    body = []
    for column in columns:
        texts = [*table.columns[column][1:], *(entries[column].text for _, entries in table.rows)]
        body.append(_right(texts))
    lines = [''.join(parts) for parts in zip(*body, strict=True)]
    space = max(len(lines[0]), len(data) + 4)
    title = '  ' + f' {data} '.center(space - 2, '-')
    return [title, *(line.rjust(space) for line in lines)]


def _left(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def _right(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts))
    return ['  ' + text.rjust(width) for text in texts]
