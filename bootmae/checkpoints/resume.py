"""Chooses the checkpoint that a run resumes from, and checks that it belongs to the run."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.optim import Optimizer

from .averages import weights_of
from .checksum import peek
from .finite import check_finite
from .load import check_resumable
from .read import read_checkpoint

NAMES = re.compile(r'(epoch|iter|step)_(\d+)\.pth')
STEP = re.compile(r'step_(\d+)\.pth')  # saved between the regular checkpoints
MOMENTS = (
    'exp_avg',
    'exp_avg_sq',
    'max_exp_avg_sq',
    'momentum_buffer',
)  # optimizer states with the shape of the weight


@dataclass
class Found:
    """The newest valid checkpoint of a folder.

    Attributes:
        path: its file, or None if no file is valid.
        content: its content from :func:`read_checkpoint`.
        skipped: newer files that were skipped, each with the reason.
    """

    path: Path | None = None
    content: dict | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def run_files(folder: str | Path) -> list[Path]:
    """Checkpoints of a run in a folder: ``epoch_N.pth``, ``iter_N.pth`` and ``step_N.pth``."""
    folder = Path(folder)
    return sorted(path for path in folder.iterdir() if NAMES.fullmatch(path.name)) if folder.is_dir() else []


def find_newest(folder: str | Path) -> Found:
    """Find the valid checkpoint with the most iterations that a run can resume from.

    The iterations come from the content of the files, not from names or dates. A file of an older version, without
    checksum record, is read completely for it.
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
    for _, _, path in sorted(known, reverse=True):  # if iterations are equal, the regular one is newer
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
    check_finite(weights_of(content), path)
    return content


def choose_checkpoint(folder: str | Path, warn: Callable[[str], None]) -> Found:
    """Find the checkpoint to resume from, see :func:`find_newest`, with a warning for each skipped file.

    Args:
        folder: the folder of the run's checkpoints.
        warn: called with each warning.

    Raises:
        ValueError: if there are checkpoints, but none is valid.
    """
    found = find_newest(folder)
    for path, reason in found.skipped:
        warn(f'skipped {path.name}: {reason}')
    if found.path is None and found.skipped:
        names = ', '.join(path.name for path, _ in found.skipped)
        raise ValueError(
            f'no checkpoint in {folder} can be resumed ({names}): {found.skipped[-1][1]}. Copy a valid '
            'one there, or start a new run without --resume in another --work-dir'
        )
    return found


def check_optimizer(content: dict, path: str | Path, optimizer: Optimizer) -> None:
    """Raise a ValueError if the optimizer state of a file is not finite or does not fit this optimizer's parameters.

    torch compares the number of parameters only. It would fail in the first step, or continue with wrong moments.
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
    moments = {
        f'{name} of parameter {key}': value
        for key, values in state['state'].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    check_finite(moments, path, 'moments of the optimizer')


def _wrong_shapes(states: dict, keys: Sequence[int], weights: Sequence[torch.Tensor]) -> str | None:
    for key, weight in zip(keys, weights, strict=True):
        for name in MOMENTS:
            value = states.get(key, {}).get(name)
            if isinstance(value, torch.Tensor) and value.shape != weight.shape:
                return f'{name} of parameter {key} is {tuple(value.shape)} for {tuple(weight.shape)}'
    unknown = sorted(set(states) - set(keys))
    return f'states of unknown parameters {unknown[:3]}' if unknown else None


def check_facts(content: dict, path: str | Path, ours: dict, changed: bool = False) -> list[str]:
    """Compare the facts that a file records about its run with those of the run that resumes.

    Args:
        content: result of :func:`read_checkpoint`. Files of older versions record nothing and pass.
        path: the file, for messages.
        ours: facts of this run. Facts that the file does not record are not compared.
        changed: allow differences.

    Returns:
        The differences.

    Raises:
        ValueError: if there are differences and ``changed`` is not set.
    """
    theirs = content['meta'].get('bootmae', {}).get('run', {})
    differences = [
        f'{name} {theirs[name]!r}, here {ours[name]!r}'
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    if differences and not changed:
        raise ValueError(
            f'{path} is from a run with another config: {"; ".join(differences)}. Resume with the config '
            'that wrote the file, or use --resume-changed to continue with this one'
        )
    return differences
