"""Which file a run goes on from, and what must agree between a file and the run that goes on."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.optim import Optimizer

from .checksum import peek
from .load import check_resumable
from .read import read_checkpoint

NAMES = re.compile(r'(epoch|iter|step)_(\d+)\.pth')
STEP = re.compile(r'step_(\d+)\.pth')  # saved between the regular ones
MOMENTS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')  # optimizer states shaped like the weights


@dataclass
class Found:
    """The newest whole checkpoint of a folder, and why newer ones were skipped.

    Attributes:
        path: its file; None where no file is whole.
        content: of :func:`read_checkpoint`.
        skipped: (file, reason) of the newer ones.
    """

    path: Path | None = None
    content: dict | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def run_files(folder: str | Path) -> list[Path]:
    """Checkpoints of a run in a folder: ``epoch_N.pth``, ``iter_N.pth`` and ``step_N.pth``."""
    folder = Path(folder)
    return sorted(path for path in folder.iterdir() if NAMES.fullmatch(path.name)) if folder.is_dir() else []


def find_newest(folder: str | Path) -> Found:
    """The checkpoint with most iterations that is whole and can be resumed.

    Iterations are those that the files record, not their dates or names. Files without a mark, which older versions
    wrote, are read to know theirs.
    """
    found, known = Found(), []
    for path in run_files(folder):
        try:
            iteration = peek(path)
            if iteration is None:
                iteration = _read(path)['meta']['iter']
        except (OSError, ValueError) as error:
            found.skipped.append((path, str(error)))
        else:
            known.append((iteration, not STEP.fullmatch(path.name), path))
    for _, _, path in sorted(known, reverse=True):  # of two alike the regular one, which was saved later
        try:
            found.path, found.content = path, _read(path)
            break
        except (OSError, ValueError) as error:
            found.path = None
            found.skipped.append((path, str(error)))
    return found


def _read(path: Path) -> dict:
    content = read_checkpoint(path)
    check_resumable(content, path)
    return content


def choose_checkpoint(folder: str | Path, warn: Callable[[str], None]) -> Found:
    """:func:`find_newest`, with a warning for each file that was skipped.

    Raises:
        ValueError: if there are checkpoints, but none is whole.
    """
    found = find_newest(folder)
    for path, reason in found.skipped:
        warn(f'skipped {path.name}: {reason}')
    if found.path is None and found.skipped:
        names = ', '.join(path.name for path, _ in found.skipped)
        raise ValueError(
            f'no checkpoint in {folder} can be resumed ({names}): {found.skipped[-1][1]}. Copy a whole '
            'one there, or start anew without --resume in another --work-dir'
        )
    return found


def check_optimizer(content: dict, path: str | Path, optimizer: Optimizer) -> None:
    """Raise a ValueError unless the optimizer state in a file is one of this optimizer's parameters.

    torch itself compares the number of parameters only, and fails in the first step or goes on with wrong moments.
    """
    state = content['optimizer']
    groups = state.get('param_groups', [])
    theirs, ours = ([len(group['params']) for group in sets] for sets in (groups, optimizer.param_groups))
    fault = None
    if theirs != ours:
        fault = f'{len(theirs)} groups with {sum(theirs)} parameters for {len(ours)} with {sum(ours)}'
    else:
        keys = [key for group in groups for key in group['params']]
        weights = [weight for group in optimizer.param_groups for weight in group['params']]
        fault = _wrong_shapes(state['state'], keys, weights)
    if fault:
        raise ValueError(
            f'{path} has the optimizer state of another model ({fault}): resume with the config that '
            'wrote the file, or start a new run from its encoder with --init'
        )


def _wrong_shapes(states: dict, keys: Sequence[int], weights: Sequence[torch.Tensor]) -> str | None:
    for key, weight in zip(keys, weights, strict=True):
        for name in MOMENTS:
            value = states.get(key, {}).get(name)
            if isinstance(value, torch.Tensor) and value.shape != weight.shape:
                return f'{name} of parameter {key} is {tuple(value.shape)} for {tuple(weight.shape)}'
    unknown = sorted(set(states) - set(keys))
    return f'states of unknown parameters {unknown[:3]}' if unknown else None


def check_facts(content: dict, path: str | Path, ours: dict, changed: bool = False) -> list[str]:
    """Compare what a file records of its run with the run that goes on.

    Args:
        content: of :func:`read_checkpoint`; files of older versions record nothing, and pass.
        path: its file, for the message.
        ours: facts of this run; only those that both know are compared.
        changed: differences are wanted.

    Returns:
        The differences.

    Raises:
        ValueError: if there are any and they are not wanted.
    """
    theirs = content['meta'].get('bootmae', {}).get('run', {})
    differences = [
        f'{name} {theirs[name]!r}, here {ours[name]!r}'
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    if differences and not changed:
        raise ValueError(
            f'{path} is of a run with another config: {"; ".join(differences)}. Resume with the config '
            'that wrote the file, or give --resume-changed to go on with this one'
        )
    return differences
