"""Per-class results: read from a run, averaged over seeds, and shown as tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..results.names import CLASSES_FILE, RAW_WEIGHTS, method_name, ordered_methods
from ..text import count_of
from .summary import Difference, Spread, paired_difference, spread_of
from .tables import Table, TableCell, number, word
from .verdicts import MINUS_MAE, TASK_NAMES, difference_text, rivals, signed

TASK_OF_METRIC = {'accuracy': 'finetune', 'IoU': 'segmentation', 'box AP': 'detection', 'mask AP': 'detection'}
NAMED = 3  # classes that the summary names at either end

# Data set, task, method, seed, metric, and percent by class.
ClassResult = tuple[str, str, str, int, str, dict[str, float]]


def read_classes(work_dir: str | Path) -> dict[str, dict[str, float]]:
    """Percent by metric and class of the newest evaluation in a work directory; empty if there is none.

    Raises:
        ValueError: The file is damaged.
    """
    found = sorted(Path(work_dir).glob(f'*/{CLASSES_FILE}'))  # timestamps sort by name
    own = Path(work_dir) / CLASSES_FILE
    file = found[-1] if found else own
    return read_file(file) if file.is_file() else {}


def class_results(name: str, work_dir: str | Path, task: str | None = None) -> list[ClassResult]:
    """Per-class results of a downstream training for the page, with the metrics that have a table; may be empty.

    Args:
        name: ``data/method/seed``.
        work_dir: Work directory of the training.
        task: Its task; the default follows from the metric.

    Raises:
        ValueError: The name has no seed, or the file is damaged.
    """
    data, method, seed, *_ = [*name.split('/', 2), '', '']
    found = read_classes(work_dir)
    if found and not seed.isdigit():
        raise ValueError(f'{name!r} is not data/method/seed, by which per-class results are averaged and compared')
    results = []
    for key, values in found.items():
        metric = key.removesuffix(RAW_WEIGHTS)
        if metric in TASK_OF_METRIC:
            label = metric if metric == key else f'{metric} of the raw weights (headline: EMA)'
            results.append((data, task or TASK_OF_METRIC[metric], method, int(seed), label, values))
    return results


def read_file(file: Path) -> dict[str, dict[str, float]]:
    """Content of one file of per-class results.

    Raises:
        ValueError: It is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding='utf-8'))
        return {metric: {name: float(value) for name, value in values.items()} for metric, values in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{file}: not percent by class and metric ({error}); delete it') from None


@dataclass(frozen=True)
class ClassTable:
    """Per-class results of one data set, task and metric.

    Attributes:
        title: Data set, task and metric.
        summary: In how many classes BootMAE leads, and where it gains and loses most against MAE.
        table: One row per class.
    """

    title: str
    summary: str
    table: Table


def class_tables(results: Sequence[ClassResult]) -> list[ClassTable]:
    """One table per data set, task and metric, in the given order; classes in the order of the data set."""
    groups: dict[tuple, list[ClassResult]] = {}
    for result in results:
        groups.setdefault((result[0], result[1], result[4]), []).append(result)
    return [_class_table(data, task, metric, group) for (data, task, metric), group in groups.items()]


def _class_table(data: str, task: str, metric: str, group: Sequence[ClassResult]) -> ClassTable:
    methods = ordered_methods(result[2] for result in group)
    spreads = {name: _spreads(group, name) for name in dict.fromkeys(name for result in group for name in result[5])}
    pairs = rivals(methods)
    gaps = {name: {first: _difference(of, first) for first in pairs} for name, of in spreads.items()}
    columns = [
        ('Class', False),
        *((method_name(method), True) for method in methods),
        *((MINUS_MAE.format(method_name(first)), True) for first in pairs),
    ]
    body = [
        (word(name), *(_mean(of.get(method)) for method in methods), *map(_gap, gaps[name].values()))
        for name, of in spreads.items()
    ]
    title = ', '.join([data, f'{TASK_NAMES.get(task, task)} {metric}'])
    summary = _summary({name: found['bootmae'] for name, found in gaps.items() if found.get('bootmae')})
    return ClassTable(title, summary, Table(f'classes of {title}', tuple(columns), tuple(body)))


def _spreads(group: Sequence[ClassResult], name: str) -> dict[str, Spread]:
    """Results of one class by method, over the seeds that have one."""
    values: dict[str, dict[int, float]] = {}
    for _, _, method, seed, _, found in group:
        if name in found:
            values.setdefault(method, {})[seed] = found[name]
    return {method: spread_of(by_seed) for method, by_seed in values.items()}


def _difference(of: dict[str, Spread], first: str) -> Difference | None:
    return paired_difference(of[first], of['mae']) if first in of and 'mae' in of else None


def _mean(spread: Spread | None) -> TableCell:
    return number(round(spread.mean, 4), f'{spread.mean:.1f}') if spread else TableCell('–')


def _gap(difference: Difference | None) -> TableCell:
    return number(round(difference.mean, 4), difference_text(difference)) if difference else TableCell('–')


def _summary(gaps: dict[str, Difference]) -> str:
    """Classes gained and lost by BootMAE; empty if the two methods share no class."""
    if not gaps:
        return ''
    ascending = sorted(gaps, key=lambda name: gaps[name].mean)
    more, less = (sum(sign * gap.mean > 0 for gap in gaps.values()) for sign in (1, -1))
    parts = [
        f'The mean of BootMAE is higher than that of MAE in {more} of {count_of(len(gaps), "class", "classes")} and '
        f'lower in {less}'
    ]
    for words, names, sign in (('it gains most in', ascending[::-1], 1), ('loses most in', ascending, -1)):
        named = [f'{name} ({signed(gaps[name].mean, 1)})' for name in names[:NAMED] if sign * gaps[name].mean > 0]
        parts += [f'{words} {", ".join(named)}'] if named else []
    return '; '.join(parts) + '.'
