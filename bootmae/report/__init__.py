"""Result rows to tables, plots and one HTML page."""

from .curves import Curve, read_curve
from .figures import comparison_svg, loss_svg, reconstruction_grid
from .page import build_page, write_page
from .rows import ResultRow, published_rows, read_rows, summarise, write_rows
from .tables import markdown_table, text_table
from .verdicts import find_verdicts

__all__ = [
    'Curve', 'ResultRow', 'build_page', 'comparison_svg', 'find_verdicts', 'loss_svg', 'markdown_table',
    'published_rows', 'read_curve', 'read_rows', 'reconstruction_grid', 'summarise', 'text_table',
    'write_page', 'write_rows',
]
