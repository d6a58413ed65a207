"""Progress of a suite: one sentence and the unfinished cells, for the top of its report."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..text import count_of

DONE, WAITING = 'done', 'waiting'
STATES = ('failed', 'killed', 'stopped', 'running elsewhere', WAITING)  # order in the list
NAMED = 12  # maximum number of cells listed per state

CellState = tuple[str, str, str]  # name, state, detail


@dataclass(frozen=True)
class Progress:
    """State of an unfinished suite.

    Attributes:
        sentence: Number of cells that are done and in every other state.
        lines: State, name and detail of every cell that needs attention.
        waiting: Names of the cells that have not started.
    """

    sentence: str
    lines: tuple[tuple[str, str, str], ...]
    waiting: str


def progress_of(cells: Sequence[CellState]) -> Progress | None:
    """Progress of a suite's cells; None if all are done or there are none."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, state, detail in cells:
        groups.setdefault(state, []).append((name, detail))
    done = len(groups.pop(DONE, []))
    if not groups:
        return None
    order = [state for state in STATES if state in groups] + [state for state in groups if state not in STATES]
    counts = ', '.join(f'{len(groups[state])} {state}' for state in order)
    return Progress(
        f'Not finished: {done} of {count_of(len(cells), "cell is", "cells are")} done; {counts}.',
        tuple(line for state in order if state != WAITING for line in _lines(state, groups[state])),
        _names([name for name, _ in groups.get(WAITING, [])]),
    )


def _lines(state: str, cells: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """One line per cell, up to the maximum."""
    lines = [(state, name, detail) for name, detail in cells[:NAMED]]
    return lines + ([(state, f'{len(cells) - NAMED} more', '')] if len(cells) > NAMED else [])


def _names(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ', '.join(names[:NAMED]) + (f' and {rest} more' if rest > 0 else '')
