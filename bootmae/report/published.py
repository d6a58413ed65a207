"""Published and measured numbers in one table, and the commands that measure what is missing."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..places import REPOSITORY, as_typed
from ..results.names import method_name, ordered_methods
from ..results.rows import ResultRow
from .model_results import CONFIGS, OVER_MAE, Place, place_of
from .summary import Difference, Spread, paired_difference, spread_of
from .tables import Table, TableCell, number, word
from .verdicts import difference_text, signed, spread_text, task_name

NOT_RUN = 'not run'
HEAD_COMMAND = re.compile(r'^#   (tools/\S.*)$', re.MULTILINE)  # in the header comment of a config

Found = tuple[str, Spread | Difference]  # protocol, and the mean over seeds or the gain over MAE


def measured_at(rows: Sequence[ResultRow], row: ResultRow) -> list[Found]:
    """Measurements of a published number: same data, task, metric, method, model and variant.

    Only rows labeled ``reproduced`` count. A published gain over MAE is compared with the paired difference. There is
    one entry per protocol.
    """
    ours = _by_protocol(rows, place_of(row))
    if not row.metric.endswith(OVER_MAE):
        return list(ours.items())
    mae = _by_protocol(rows, place_of(row, 'mae'))
    gains = [(name, paired_difference(spread, mae[name])) for name, spread in ours.items() if name in mae]
    return [(name, gain) for name, gain in gains if gain]


def _by_protocol(rows: Sequence[ResultRow], place: Place) -> dict[str, Spread]:
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.label == 'reproduced' and place_of(row) == place:
            values.setdefault(row.protocol, {})[row.seed] = row.value
    return {protocol: spread_of(by_seed) for protocol, by_seed in values.items()}


def beside_published(published: Sequence[ResultRow], rows: Sequence[ResultRow]) -> Table:
    """One row per published number, with the measurement and its difference to it.

    Rows labeled ``not run`` without a published number follow. The error of a difference is that of the mean over our
    seeds; the uncertainty of the published number is unknown.
    """
    any_found = any(measured_at(rows, row) for row in published)
    columns = [
        ('Data', False),
        ('Task', False),
        ('Published with', False),
        ('Method', False),
        ('Published', True),
        ('Here', True),
    ]
    columns += [('Difference', True), ('Here with', False)] if any_found else []
    columns += [('Source', False)]
    body = []
    for row in _side_by_side(published):
        for protocol, found in measured_at(rows, row) or [('', None)]:
            cells = [
                word(row.data),
                word(task_name(row)),
                word(row.protocol),
                word(method_name(row.method)),
                number(row.value, _published(row)),
                _measured(found),
            ]
            cells += [_gap(row, found), word(protocol or '–')] if any_found else []
            body.append((*cells, word(row.config)))
    for row in missing_rows(published, rows):
        cells = [
            word(row.data),
            word(task_name(row)),
            word(row.protocol),
            word(method_name(row.method)),
            TableCell('–'),
            TableCell(NOT_RUN),
            *([TableCell('–'), TableCell('–')] if any_found else []),
            word(row.config),
        ]
        body.append(tuple(cells))
    return Table('published numbers', tuple(columns), tuple(body))


def missing_rows(published: Sequence[ResultRow], rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows labeled ``not run`` for which there is neither a published nor a measured number."""
    filled = {place_of(row) for row in [*published, *(row for row in rows if row.measured)]}
    return [row for row in rows if row.label == NOT_RUN and place_of(row) not in filled]


def missing_commands(
    published: Sequence[ResultRow], rows: Sequence[ResultRow], root: Path = REPOSITORY
) -> dict[str, str]:
    """Commands that measure what is missing, by place; without those whose config does not exist."""
    found = {}
    for row in [*_side_by_side(published), *missing_rows(published, rows)]:
        command = '' if row.label != NOT_RUN and measured_at(rows, row) else command_of(row, root)
        if command:
            place = place_of(row)
            task = task_name(row).removesuffix(OVER_MAE)
            parts = [row.data, task, method_name(row.method), place.size, place.variant]
            found[', '.join(filter(None, parts))] = as_typed(command)
    return found


def command_of(row: ResultRow, root: Path = REPOSITORY) -> str:
    """The command in the header of the config that makes a row's number; empty if there is none."""
    place = place_of(row)
    name = CONFIGS.get('ViTDet' if 'ViTDet' in place.variant else row.task)
    given = row.config if row.config.endswith('.py') else ''
    model = f'{row.method}_{place.size.replace("-", "").lower()}'
    file = root / (given or f'configs/{name.format(model)}' if name else given or 'none')
    if not file.is_file():
        return ''
    if 'multi-scale' in place.variant:
        return f'tools/test.py {file.relative_to(root).as_posix()} CHECKPOINT --tta'
    return next(iter(HEAD_COMMAND.findall(file.read_text(encoding='utf-8'))), '')


def _side_by_side(published: Sequence[ResultRow]) -> list[ResultRow]:
    """Methods of one task and protocol together, MAE first; places in order of first appearance."""
    places = list(dict.fromkeys((row.data, row.task, row.metric, row.protocol) for row in published))
    methods = ordered_methods(row.method for row in published)
    return sorted(
        published,
        key=lambda row: (places.index((row.data, row.task, row.metric, row.protocol)), methods.index(row.method)),
    )


def _published(row: ResultRow) -> str:
    return signed(row.value, 1) if row.metric.endswith(OVER_MAE) else f'{row.value:.1f}'


def _measured(found: Spread | Difference | None) -> TableCell:
    if found is None:
        return TableCell(NOT_RUN)
    return number(found.mean, spread_text(found) if isinstance(found, Spread) else difference_text(found))


def _gap(row: ResultRow, found: Spread | Difference | None) -> TableCell:
    if found is None:
        return TableCell('–')
    gap = found.mean - row.value
    if isinstance(found, Spread):
        error = found.std / found.n**0.5 if found.std is not None else None
    else:
        error = found.standard_error
    return number(gap, difference_text(Difference(found.n, gap, error)))
