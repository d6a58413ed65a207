#!/usr/bin/env python3
"""Generate the speed tables of docs and benchmarks/README.md from the rows in benchmarks/results/*.csv.

    benchmarks/tables.py             # print all tables
    benchmarks/tables.py --write     # write each table between its markers in all pages

    <!-- speed: step -->
    <!-- /speed -->

Of each thing measured on a device the newest row is shown; the older ones stay in the file. A test fails where a page
says something else than the rows.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import measure

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))

from pages import markers

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Describes how the rows of a CSV file become a table.

    Attributes:
        same: columns that tell what was measured; rows alike in these are older and newer ones of one measurement.
        columns: heading and what stands below it, from a row. Headings that no row has anything for are left out.
    """

    same: tuple[str, ...]
    columns: tuple[tuple[str, Callable[[Row], str]], ...]


def text(*names: str, joint: str = ' ') -> Callable[[Row], str]:
    """Join the cells of several columns."""
    return lambda row: joint.join(row[name] for name in names if row.get(name))


def number(name: str, digits: int, unit: str = '') -> Callable[[Row], str]:
    """Format a number with a fixed number of decimals."""
    return lambda row: f'{float(row[name]):,.{digits}f}{unit}' if row.get(name) else ''


def share(name: str) -> Callable[[Row], str]:
    """Format a fraction in percent."""
    return lambda row: f'{100 * float(row[name]):.0f} %' if row.get(name) else ''


def speed(name: str) -> Callable[[Row], str]:
    """Format a number with about three digits: 4,213, 21.4, 0.52."""

    def cell(row: Row) -> str:
        if not row.get(name):
            return ''
        value = float(row[name])
        return f'{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}'

    return cell


def both(cell: Callable[[str], Callable[[Row], str]], name: str) -> Callable[[Row], str]:
    """Format the cells of ours and stock as `ours / stock`, or once if they are equal."""

    def cells(row: Row) -> str:
        ours, stock = (cell(f'{name}_{side}')(row) for side in ('ours', 'stock'))
        return ours if ours == stock and (cell is text or not ours) else f'{ours} / {stock}'

    return cells


def flag(name: str, yes: str) -> Callable[[Row], str]:
    """Return a word for True, nothing for False, and any other cell unchanged."""
    return lambda row: {'True': yes, 'False': '', 'none': ''}.get(row.get(name, ''), row.get(name, ''))


def device(row: Row) -> str:
    """Format the device, for a CPU with the number of threads."""
    threads = row.get('threads', '')
    if 'cores' not in row['device'] or not threads:
        return row['device']
    return f'{row["device"]}, {threads} thread{"" if threads == "1" else "s"}'


IDEAS = Table(('idea',), tuple((name, text(name)) for name in ('idea', 'prediction', 'measured', 'verdict')))
PLACE = (('device', device), ('date', lambda row: row['date'][:10]))
TABLES = {
    'step': Table(
        ('method', 'arch', 'img_size', 'batch', 'precision', 'compile', 'route', 'device', 'threads'),
        (
            ('model', text('method', 'arch')),
            ('pixels', text('img_size')),
            ('batch', text('batch')),
            ('precision', text('precision')),
            ('compiled', flag('compile', 'yes')),
            ('route', text('route')),
            ('images/s', speed('images_per_s')),
            ('bare step', speed('bare_images_per_s')),
            ('ms a step', speed('ms_per_step')),
            ('peak GiB', number('peak_gib', 1)),
            ('of the matrix peak', share('peak_share')),
            ('loop over bare step', number('overhead_percent', 1, ' %')),
            *PLACE,
        ),
    ),
    'reading': Table(
        ('source', 'route', 'workers', 'batch', 'compile', 'device', 'threads'),
        (
            ('images', text('source')),
            ('of pixels', speed('mean_pixels')),
            ('route', text('route')),
            ('workers', text('workers')),
            ('batch', text('batch')),
            ('compiled', flag('compile', 'yes')),
            ('images/s', speed('images_per_s')),
            ('over stock', number('ratio', 2, ' x')),
            ('of the rate with noise', share('share_of_noise')),
            ('CPU ms an image', number('worker_cpu_ms', 2)),
            ('mean error, of 255', number('error_mean', 2)),
            *PLACE,
        ),
    ),
    'downstream': Table(
        ('task', 'size', 'img_size', 'batch', 'precision', 'ops', 'options', 'device', 'threads'),
        (
            ('task', text('task')),
            ('size', text('size')),
            ('pixels', text('img_size')),
            ('batch', text('batch')),
            ('precision, ours / stock', both(text, 'precision')),
            ('box ops', text('ops')),
            ('images/s, ours / stock', both(speed, 'images_per_s')),
            ('speed over stock', number('ratio', 2, ' x')),
            ('quartiles', text('ratio_quartiles')),
            ('GiB, ours / stock', both(speed, 'peak_gib')),
            *PLACE,
        ),
    ),
    'scaling': Table(
        ('method', 'arch', 'gpus', 'global_batch'),
        (
            ('model', text('method', 'arch')),
            ('GPUs', text('gpus')),
            ('global batch', text('global_batch')),
            ('all-reduced MB', number('mb_reduced', 0)),
            ('GB/s', text('gb_per_s')),
            ('all-reduce ms', number('allreduce_ms', 1)),
            ('of it waited for', number('exposed_ms', 1)),
            ('images/s (projection)', speed('images_per_s')),
            ('efficiency', number('efficiency_percent', 0, ' %')),
            ('GPU-hours, 800 epochs', number('gpu_hours', 0)),
            ('hours', number('hours', 1)),
            ('step of one GPU', text('source')),
            *PLACE,
        ),
    ),
    'demo_step': Table(
        ('config', 'label', 'batch', 'device', 'threads'),
        (
            ('config', text('config')),
            ('', text('label')),
            ('batch', text('batch')),
            ('images/s in the loop', speed('images_per_s_loop')),
            ('in the bare step', speed('images_per_s_bare')),
            ('ratio', number('ratio', 2)),
            *PLACE,
        ),
    ),
    'gpu_memory': Table(
        ('config', 'checkpointing'),
        (
            ('config', lambda row: row['config'].removeprefix('configs/').removesuffix('.py')),
            ('pixels', text('img_size')),
            ('activation checkpointing', flag('checkpointing', 'yes')),
            ('images a GPU', text('batch')),
            ('GiB', number('gib', 1)),
            ('without images', number('gib_fixed', 1)),
            ('MiB an image', number('mib_per_image', 0)),
            *((f'images on {size} GB', text(f'images_{size}_gb')) for size in (24, 40, 80)),
        ),
    ),
    'gpu': Table(
        ('claim', 'device'), tuple((name, text(name)) for name in ('claim', 'target', 'measured', 'verdict')) + PLACE
    ),
    'ideas_step': IDEAS,
    'ideas_demo': IDEAS,
    'ideas_reading': IDEAS,
}


def newest(rows: Iterable[Row], same: Sequence[str]) -> list[Row]:
    """Return the last row of each measurement, in the order of the first rows."""
    found: dict[tuple, Row] = {}
    for row in rows:
        found[tuple(row.get(name, '') for name in same)] = row
    return list(found.values())


def render(table: Table, rows: Sequence[Row]) -> str:
    """Format a table in Markdown."""
    if not rows:
        return '*Not measured.*\n'
    rows = newest(rows, table.same)
    columns = [(heading, [cell(row) for row in rows]) for heading, cell in table.columns]
    columns = [(heading, cells) for heading, cells in columns if any(cells)]
    return markers.markdown([heading for heading, _ in columns], zip(*(cells for _, cells in columns), strict=True))


def makers(folder: str | Path | None = None) -> markers.Makers:
    """Return the text between the markers of each table; ``folder`` has the CSV files (default: benchmarks/results)."""
    return {name: partial(lambda name: render(TABLES[name], measure.read_rows(name, folder)), name) for name in TABLES}


def filled(page: str, name: str, folder: str | Path | None = None) -> str:
    """Return the text of a page with updated tables.

    Raises:
        ValueError: if a marker is wrong.
    """
    return markers.filled(page, name, 'speed', makers(folder))


def pages(root: Path = measure.ROOT) -> list[Path]:
    """Return all pages that may have tables."""
    return markers.pages(root)


def stale(paths: Iterable[Path], folder: str | Path | None = None) -> dict[Path, str]:
    """Return the pages that are out of date, with their new text."""
    return markers.stale(paths, 'speed', makers(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('table', nargs='*', choices=['all', *TABLES], default='all')
    parser.add_argument('--write', action='store_true', help='update the pages')
    args = parser.parse_args()
    if args.write:
        for path, page in stale(pages()).items():
            measure.replace_file(path, page)
            print(f'{path.relative_to(measure.ROOT)}: rewritten')
        return
    for name in TABLES if 'all' in args.table else args.table:
        print(f'{name}\n\n{render(TABLES[name], measure.read_rows(name))}')


if __name__ == '__main__':
    main()
