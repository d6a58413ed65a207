"""Folders of checkpoints: a work directory holds those of one run, and its newest one stands for the folder.

A cell of a suite has its work directory in ``run``, and a suite the folders of its cells.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..text import count_of
from .checksum import peek
from .hub import is_name
from .read import read_meta
from .run_identity import RunIdentity, differences, is_recorded, key_of, shown

NAMES = re.compile(r'(epoch|iter|step)_(\d+)\.pth')
WEIGHTS = ('.pth', '.pt', '.bin', '.safetensors')
RECORDS = ('last_checkpoint', 'bad_images.txt', 'nonfinite')  # beside the checkpoints; hooks write the latter two
RUNS = ('run', '*/run', '*/*/run')  # work directories in the folder of a cell, of a task and of a whole suite


def run_files(folder: str | Path) -> list[Path]:
    """Checkpoints of a run in a folder: ``epoch_N.pth``, ``iter_N.pth`` and ``step_N.pth``."""
    folder = Path(folder)
    return sorted(path for path in folder.iterdir() if NAMES.fullmatch(path.name)) if folder.is_dir() else []


def claim_folder(folder: Path, ours: RunIdentity, move: bool = False) -> str:
    """Make sure that a new run does not mix its checkpoints with those of another run.

    Args:
        folder: folder for the run's checkpoints.
        ours: identity of the new run.
        move: move the files of an earlier run into a subfolder.

    Returns:
        A note for the log; empty if the folder has no checkpoints.

    Raises:
        ValueError: if the folder holds checkpoints of another run, or of one that is not recorded.
    """
    if move and (old := replaceable(folder)):
        return f'moved the files of an earlier run to {move_aside(folder, old)}'
    files = run_files(folder)
    for path in files:
        try:
            meta = read_meta(path)
        except (OSError, ValueError):
            meta = {}
        origin, settings = differences(meta, ours, ours.facts)
        if is_recorded(meta) and not origin + settings:
            continue
        whose = f'from another run: {shown(origin + settings)}'
        remedy = 'to continue that run, use its own command with --resume'
        if not origin + ours.init_difference(meta):
            remedy = 'to continue that run with this config, use --resume --resume-changed'
        if not origin + settings:
            whose, remedy = 'from a run that it does not record', 'if it is this run, continue it with --resume'
        raise ValueError(
            f'{folder} already holds checkpoints, and {path.name} is {whose}. Use another --work-dir, or --move-aside '
            f'to move the old checkpoints into a subfolder; {remedy}'
        )
    if not files:
        return ''
    return (
        f'{folder} holds checkpoints of this same run ({", ".join(path.name for path in files)}): it starts from the '
        'beginning and overwrites them; --resume would continue it'
    )


def replaceable(folder: Path) -> list[Path]:
    """Files of a run in its folder that a new run would replace: its checkpoints and its records of faults."""
    found = [*run_files(folder), *folder.glob('best_*.pth'), *(folder / name for name in RECORDS)]
    return [path for path in found if path.exists()]


def move_aside(folder: Path, files: Sequence[Path]) -> Path:
    """Move files of a folder into a new subfolder and return it."""
    number = next(number for number in itertools.count(1) if not (folder / f'earlier_{number}').exists())
    target = folder / f'earlier_{number}'
    target.mkdir()
    for path in files:
        path.rename(target / path.name)
    return target


def run_folders(folder: Path) -> list[Path]:
    """Folders with the checkpoints of a run: this one, or those of the suite's cells in it."""
    candidates = ([folder], *(sorted(folder.glob(pattern)) for pattern in RUNS))
    return next(filter(None, ([place for place in places if run_files(place)] for places in candidates)), [])


def checkpoint_file(path: str, tell: Callable[[str], object] = print) -> str:
    """Return a checkpoint as given, or for a folder the newest checkpoint of its run, or else its only weights.

    What is missing or cannot be read is returned as given: the reader says what it is.

    Args:
        path: a file, ``timm:NAME``, a work directory, or the folder of a suite or of a part of one.
        tell: called with a line that names the file taken from a folder.

    Raises:
        ValueError: if the folder has several runs, or checkpoints of several runs.
    """
    folder = Path(path)
    if is_name(path) or not folder.is_dir():
        return path
    runs = run_folders(folder)
    if len(runs) > 1:
        raise ValueError(
            f'{path} holds {count_of(len(runs), "run")}, {in_groups(runs, folder)}: give the folder of one'
        )
    others = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    if not runs and len(others) == 1:
        tell(f'{path} is a folder: taking {others[0]}, its only weights')
        return str(others[0])
    known = []
    for file in run_files(runs[0]) if runs else []:
        try:
            peek(file)  # an error if its end is cut
            known.append((read_meta(file), file))
        except (OSError, ValueError) as error:
            tell(f'skipped {file}: {error}')
    if not known:
        return path
    known.sort(key=lambda item: (item[0].get('iter', -1), not item[1].name.startswith('step_')))
    meta, newest = known[-1]
    if other := next((file for theirs, file in known if key_of(theirs) != key_of(meta)), None):
        raise ValueError(
            f'{path} is a folder with checkpoints of several runs ({other.name}, {newest.name}): give a file'
        )
    tell(f'{path} is a folder: taking {newest}, the newest checkpoint of its run')
    return str(newest)


def in_groups(runs: Sequence[Path], folder: Path, prefix: str = '') -> str:
    """Names of runs below a folder as a shell would expand them: ``pretrain/{bootmae-0,mae-0}``."""
    groups: dict[str, list[str]] = {}
    for cell in (run.relative_to(folder).parent for run in runs):
        groups.setdefault('' if cell.parent == Path() else f'{cell.parent}/', []).append(cell.name)
    return ', '.join(
        prefix + group + (f'{{{",".join(names)}}}' if len(names) > 1 else names[0]) for group, names in groups.items()
    )
