"""From result rows to tables, plots and one HTML page."""

from ..results.rows import ResultRow, published_rows, read_rows, write_rows
from ..visualization.grids import reconstruction_grid
from ..visualization.predictions import detection_grid, segmentation_grid
from .classes import class_results, read_classes
from .curves import Curve, read_curve
from .figures import comparison_svg, loss_svg
from .metric_curves import read_metrics
from .overview import overview_markdown, overview_text
from .page import build_page, write_page
from .summary import summarize
from .tables import markdown_table, text_table
from .verdicts import find_verdicts

__all__ = [
    'Curve',
    'ResultRow',
    'build_page',
    'class_results',
    'comparison_svg',
    'detection_grid',
    'find_verdicts',
    'loss_svg',
    'markdown_table',
    'overview_markdown',
    'overview_text',
    'published_rows',
    'read_classes',
    'read_curve',
    'read_metrics',
    'read_rows',
    'reconstruction_grid',
    'segmentation_grid',
    'summarize',
    'text_table',
    'write_page',
    'write_rows',
]
