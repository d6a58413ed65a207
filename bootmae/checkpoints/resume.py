"""Chooses the checkpoint that a run resumes from, and checks that it belongs to the run."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from ..text import count_of
from .averages import weights_of
from .checksum import peek
from .finite import check_finite
from .folders import run_files
from .load import check_resumable
from .read import read_checkpoint
from .run_identity import Differences, RunIdentity, differences, is_comparable, is_recorded, shown

STEP = re.compile(r'step_(\d+)\.pth')  # saved between the regular checkpoints
MOMENTS = (
    'exp_avg',
    'exp_avg_sq',
    'max_exp_avg_sq',
    'momentum_buffer',
)  # optimizer states with the shape of the weight


@dataclass
class Found:
    """The newest valid checkpoint of a run in a folder.

    Attributes:
        path: its file, or None if there is none.
        content: its content from :func:`read_checkpoint`.
        skipped: newer files that were skipped, each with the reason.
        others: newer files of other runs, each with the differences in origin and settings.
    """

    path: Path | None = None
    content: dict | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    others: list[tuple[Path, Differences]] = field(default_factory=list)


def find_newest(folder: str | Path, compare: Callable[[dict], Differences] = lambda meta: ([], [])) -> Found:
    """Find the valid checkpoint with the most iterations that a run can resume from.

    The iterations come from the content of the files, not from names or dates. A file of an older version, without
    checksum record, is read completely for it.

    Args:
        folder: the folder of the checkpoints.
        compare: returns the differences between the run that wrote a checkpoint with this ``meta`` and the run that
            resumes. A file with differences is not taken.
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
            content = _read(path)
        except (OSError, ValueError) as error:
            found.skipped.append((path, str(error)))
            continue
        if any(other := compare(content['meta'])):
            found.others.append((path, other))
            continue
        found.path, found.content = path, content
        break
    return found


def _read(path: Path) -> dict:
    content = read_checkpoint(path)
    check_resumable(content, path)
    check_finite(weights_of(content), path)
    return content


def choose_checkpoint(
    folder: str | Path,
    warn: Callable[[str], None],
    identity: RunIdentity | None = None,
    facts: Mapping[str, Any] | None = None,
    changed: bool = False,
) -> Found:
    """Find the checkpoint to resume from, see :func:`find_newest`, with a warning for each skipped file.

    Args:
        folder: the folder of the run's checkpoints.
        warn: called with each warning.
        identity: identity of the run that resumes, which takes only its own files; None takes any.
        facts: its facts, see ``resume_signature``.
        changed: if no file fits, take the one with the fewest differences in its settings.

    Raises:
        ValueError: if there are checkpoints, but none is valid and belongs to the run.
    """
    found = find_newest(folder, lambda meta: differences(meta, identity, facts or {}))
    for path, reason in found.skipped:
        warn(f'skipped {path.name}: {reason}')
    if found.others and found.path is not None and not is_comparable(found.content['meta']):
        found.path = None  # it may be of the other run, too
    if found.path is not None:
        for path, (origin, settings) in found.others:
            warn(f'skipped {path.name}: it is from another run ({shown(origin + settings)})')
    elif found.others:
        path, _ = min(found.others, key=lambda item: tuple(map(len, item[1])))  # the newest of the most similar ones
        content = _read(path)
        check_identity(content['meta'], path, identity, facts or {}, changed)
        found.path, found.content = path, content
    elif found.skipped:
        names = ', '.join(path.name for path, _ in found.skipped)
        raise ValueError(
            f'no checkpoint in {folder} can be resumed ({names}): {found.skipped[-1][1]}. Copy a valid '
            'one there, or start a new run without --resume in another --work-dir'
        )
    if identity and found.path is not None and not is_recorded(found.content['meta']):
        warn(f'{found.path.name} is of an older version and does not record its run: make sure that it is this run')
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
        sizes = f'{count_of(len(theirs), "group")} with {count_of(sum(theirs), "parameter")}'
        fault = f'{sizes} for {len(ours)} with {sum(ours)}'
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


def check_identity(
    meta: Mapping, path: str | Path, ours: RunIdentity | None, facts: Mapping[str, Any], changed: bool = False
) -> list[str]:
    """Compare the run that wrote a checkpoint with the run that resumes.

    Args:
        meta: ``meta`` of the checkpoint. What older versions did not record is not compared.
        path: the file, for messages.
        ours: identity of the run that resumes; None compares only the facts.
        facts: its facts, see ``resume_signature``.
        changed: allow other settings. Another seed or other start weights are never allowed.

    Returns:
        The differences.

    Raises:
        ValueError: if there are differences that are not allowed.
    """
    origin, settings = differences(meta, ours, facts)
    if origin:
        raise ValueError(
            f'{path} is from another run: {shown(origin + settings)}. Resume it with the command that wrote it, or '
            'start this run in another --work-dir without --resume'
        )
    if settings and not changed:
        raise ValueError(
            f'{path} is from a run with another config: {shown(settings)}. Resume with the config '
            'that wrote the file, or use --resume-changed to continue with this one'
        )
    return settings
