"""The table of docs/watching.md: monitored numbers of runs with an online probe, stored in results/watching.csv."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from .markers import markdown

FILE = Path('results', 'watching.csv')
PROBE = ('probe/knn', 'probe/rankme')
MONITORED = ('target_variance_images', 'feature_error', 'momentum_distance')
COLUMNS = ('run', 'epoch', *PROBE, *MONITORED)
HEADS = ('run', 'epoch', 'k-NN, %', 'RankMe', '`target_variance_images`', '`feature_error`', '`momentum_distance`')
DIGITS = (1, 1, 2, 2, 2)


def run_lines(name: str, work_dir: str | Path) -> list[dict[str, str]]:
    """One line per probe of a run: its numbers, and those of the last log line of that epoch (none at epoch 0).

    Raises:
        FileNotFoundError: The work directory has no scalars.
        ValueError: They have no online probe.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(f'{work_dir}: no */vis_data/scalars.json; give the work directory of a training')
    logged = [json.loads(line) for line in files[-1].read_text(encoding='utf-8').splitlines()]
    last = {line['epoch']: line for line in logged if 'target_variance_images' in line}
    lines = [
        dict(run=name, epoch=line['step'])
        | {key: f'{line[key]:.4g}' for key in PROBE}
        | {key: f'{last[line["step"]][key]:.4g}' for key in MONITORED if line['step'] in last}
        for line in logged
        if PROBE[1] in line
    ]
    if not lines:
        raise ValueError(f'{files[-1]}: no {PROBE[1]}; train with default_hooks.probe, see docs/watching.md')
    return lines


def csv_text(runs: Mapping[str, str | Path]) -> str:
    """Text of the stored file for work directories by name of the run."""
    buffer = io.StringIO(newline='')
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator='\n')
    writer.writeheader()
    for name, work_dir in runs.items():
        writer.writerows(run_lines(name, work_dir))
    return buffer.getvalue()


def table(root: str | Path) -> str:
    """The table; empty without the file."""
    path = Path(root) / FILE
    if not path.is_file():
        return ''
    with path.open(newline='', encoding='utf-8') as file:
        return markdown(HEADS, map(_cells, csv.DictReader(file)))


def _cells(line: Mapping[str, str]) -> Iterable[str]:
    numbers = [
        f'{float(line[key]):.{digits}f}' if line[key] else '' for key, digits in zip((*PROBE, *MONITORED), DIGITS)
    ]
    return [line['run'], line['epoch'], *numbers]
