"""A complete comparison from one file, methods x tasks x seeds, which resumes after any interruption."""

from .cells import Cell, make_cells
from .spec import Suite, load_suite

__all__ = ['Cell', 'Suite', 'load_suite', 'make_cells']
