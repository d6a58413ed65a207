"""A whole comparison: methods x tasks x seeds, from one file, resumed where it was left."""

from .cells import Cell, make_cells
from .spec import Suite, load_suite

__all__ = ['Cell', 'Suite', 'load_suite', 'make_cells']
