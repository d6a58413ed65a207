"""Training curves from the scalars that mmengine's LocalVisBackend writes to a work directory.

Layout: ``WORK_DIR/<timestamp>/vis_data/scalars.json``, one JSON object per line. A resumed run
creates a new timestamp, so one training can be spread over several files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Curve:
    """Logged values of one training.

    Attributes:
        name: ``data/method`` or ``data/method/seed``; the figures group and color by it.
        steps: Logged iterations or epochs, ascending (K).
        values: One number per step (K) by key, such as ``loss`` or ``lr``; NaN if it was not logged.
        unit: Unit of the steps, ``iteration`` or ``epoch``.
    """

    name: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    unit: str = 'iteration'

    @property
    def parts(self) -> tuple[str, str, str]:
        """Data set, method and seed of the name; missing parts are empty, and a single word is the method."""
        words = self.name.split('/', 2)
        if len(words) == 1:
            return '', words[0], ''
        return words[0], words[1], words[2] if len(words) > 2 else ''


def read_curve(name: str, work_dir: str | Path, having: str = 'loss') -> Curve:
    """Curve of the newest training in a work directory, with resumed parts merged.

    Args:
        name: Name of the curve.
        work_dir: Work directory of the runner, or one of its timestamp directories.
        having: Only lines with this key are read; the default skips lines of validations and hooks.

    Raises:
        FileNotFoundError: The directory has no such line.
        ValueError: A file is damaged. An unfinished last line is accepted, because a crash leaves one.
    """
    points: dict[int, dict[str, float]] = {}
    for folder, file in _runs(Path(work_dir)):
        run = _read_points(file, having)
        if run:
            points = run if _restarted(folder) else _merge(points, run)
    if not points:
        raise FileNotFoundError(
            f'{work_dir}: no scalars.json with {having!r} below it; give the work '
            'directory of a training that logged at least once with LocalVisBackend'
        )
    return _to_curve(name, points)


def _runs(work_dir: Path) -> list[tuple[Path, Path]]:
    """Folder and scalar file of every run, oldest first; timestamps sort by name."""
    found = []
    for folder in [*sorted(work_dir.glob('*/vis_data')), work_dir / 'vis_data', work_dir]:
        whole = folder / 'scalars.json'
        # Each line is in scalars.json and in <timestamp>.json; reading both would count it twice.
        files = [whole] if whole.is_file() else sorted(folder.glob('[0-9]*_[0-9]*.json'))
        found += [(folder, file) for file in files]
    return found


def _restarted(folder: Path) -> bool:
    """Whether the run started from scratch according to its dumped config; without a config the steps decide."""
    config = folder / 'config.py'
    return config.is_file() and bool(re.search(r'^resume = False$', config.read_text(encoding='utf-8'), re.M))


def _merge(old: dict[int, dict], new: dict[int, dict]) -> dict[int, dict]:
    """Old points before the first new step, then the new points, so that repeated steps count once."""
    first = min(new)
    return {**{step: point for step, point in old.items() if step < first}, **new}


def _read_points(file: Path, having: str) -> dict[int, dict[str, float]]:
    lines = file.read_text(encoding='utf-8').splitlines()
    points = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if having in record:
                points[int(record['step'])] = _numbers(record)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f'{file}, line {number}: not a line of scalars ({error}); repair or delete this line'
            ) from None
    return points


def _numbers(record: dict) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in record.items()
        if key != 'step' and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _to_curve(name: str, points: dict[int, dict[str, float]]) -> Curve:
    steps = sorted(points)
    keys = dict.fromkeys(key for step in steps for key in points[step])
    values = {key: np.array([points[step].get(key, np.nan) for step in steps]) for key in keys}
    return Curve(name, np.array(steps, dtype=np.int64), values)
