"""How far a suite has come: one sentence and the cells that are not done, for the top of its report."""

from collections.abc import Sequence
from dataclasses import dataclass

DONE = 'done'
STATES = ('failed', 'killed', 'stopped', 'running', 'blocked', 'waiting', 'not run')  # in the order of the list
QUIET = ('waiting', 'not run')  # of these the names alone
NAMED = 12  # cells of a state that are named

CellState = tuple[str, str, str]  # name, state, detail


@dataclass(frozen=True)
class Progress:
    """State of an unfinished suite.

    Attributes:
        sentence: How many cells are done, and how many in each other state.
        lines: State, name, detail of every cell that needs a look.
        names: State and names of those that merely have not begun.
    """

    sentence: str
    lines: tuple[tuple[str, str, str], ...]
    names: tuple[tuple[str, str], ...]


def progress_of(cells: Sequence[CellState]) -> Progress | None:
    """What to say of a suite's cells; None where all are done, or there are none."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, state, detail in cells:
        groups.setdefault(state, []).append((name, detail))
    done = len(groups.pop(DONE, []))
    if not groups:
        return None
    order = [state for state in STATES if state in groups] + [state for state in groups if state not in STATES]
    counts = ', '.join(f'{len(groups[state])} {state}' for state in order)
    return Progress(
        f'Not finished: {done} of {len(cells)} cells are done; {counts}.',
        tuple(line for state in order if state not in QUIET for line in _lines(state, groups[state])),
        tuple((state, _names([name for name, _ in groups[state]])) for state in order if state in QUIET),
    )


def _lines(state: str, cells: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """A line a cell, as many as fit the top of a page."""
    lines = [(state, name, detail) for name, detail in cells[:NAMED]]
    return lines + ([(state, f'{len(cells) - NAMED} more', '')] if len(cells) > NAMED else [])


def _names(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ', '.join(names[:NAMED]) + (f' and {rest} more' if rest > 0 else '')
