"""The figure of docs/evidence.md: accuracy over the length of pretraining, from the rows of two suites."""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bootmae.report.figures import STYLE, method_colors
from bootmae.report.summary import Comparison, Spread, spread_of, summarize
from bootmae.report.verdicts import in_order, labels_phrase, plain_task_name, spread_text
from bootmae.results.names import method_name
from bootmae.results.rows import ResultRow, read_rows

IMAGE = Path('docs', 'images', 'evidence-curves.svg')
TEXT = 'Accuracy in percent over the images seen in pretraining: mean and standard deviation over seeds.'
COLUMNS = 3
POINT = '-epoch-'  # mae-epoch-5: the checkpoint of mae after 5 epochs
LAST = re.compile(r'block (\d+) of \1$')

Lines = dict[str, dict[int, Spread]]  # by method: accuracy by number of images


def last_blocks(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows without those of frozen features after inner blocks."""
    return [row for row in rows if 'block ' not in row.protocol or LAST.search(row.protocol)]


def comparisons_of(rows: Sequence[ResultRow]) -> list[Comparison]:
    """What a table or figure of the pages compares, in order.

    Raises:
        ValueError: The methods were judged on different test data, which a page does not tell.
    """
    found = in_order(summarize(rows))
    for item in found:
        if item.fingerprints:
            raise ValueError(
                f'{item.data}, {title(item)}: rows of different test data (data_hash {", ".join(item.fingerprints)}) '
                'in one comparison; run the methods again on the same images'
            )
    return found


def lines_of(rows: Sequence[ResultRow]) -> list[tuple[Comparison, Lines]]:
    """What each panel shows: one measurement, after the last block, with the points of each method."""
    rows = last_blocks(rows)
    images = {row.method: row.images for row in rows}
    panels = []
    for item in comparisons_of(rows):
        lines: Lines = {}
        for method, spread in item.methods.items():
            lines.setdefault(method.partition(POINT)[0], {})[images[method]] = spread_of(spread.values)
        panels.append((item, {method: dict(sorted(points.items())) for method, points in lines.items()}))
    return panels


def title(item: Comparison) -> str:
    return f'{plain_task_name(item)}, {labels_phrase(item)}'


def description(panels: Sequence[tuple[Comparison, Lines]]) -> str:
    """Every number of the figure, for screen readers and to see whether the file is out of date."""
    return ' '.join(
        [TEXT]
        + [
            f'{title(item)}, {method_name(method)}: '
            + ', '.join(f'{spread_text(spread)} at {count:,}' for count, spread in points.items())
            + '.'
            for item, lines in panels
            for method, points in lines.items()
        ]
    )


def draw(panels: Sequence[tuple[Comparison, Lines]]) -> str:
    """The figure as the text of an SVG file with a white background."""
    colors = method_colors(method for _, lines in panels for method in lines)
    with matplotlib.rc_context(STYLE | {'svg.hashsalt': 'evidence', 'figure.facecolor': 'white'}):
        rows = -(-len(panels) // COLUMNS)
        figure = Figure(figsize=(3.0 * COLUMNS, 2.6 * rows + 0.4), layout='constrained')
        places = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for axes, (item, lines) in zip(places, panels, strict=False):
            for method, points in lines.items():
                _draw_line(axes, method, points, colors[method])
            axes.set_title(title(item), fontsize=10)
            axes.set_xlabel('images seen, millions')
            axes.set_ylabel('accuracy, percent')
            axes.grid(axis='y')
        for axes in places[len(panels) :]:
            axes.remove()
        key: dict[str, Artist] = {}  # of all panels, because a method may be in some only
        for axes in places[: len(panels)]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                key.setdefault(label, handle)
        figure.legend(list(key.values()), list(key), loc='outside lower center', ncols=4)
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={'Date': None, 'Description': description(panels)})
    return re.sub(r'[ \t]+$', '', buffer.getvalue().decode(), flags=re.M)


def _draw_line(axes: Axes, method: str, points: dict[int, Spread], color: str) -> None:
    """A line with error bars; an encoder without pretraining is a level."""
    if list(points) == [0]:
        mean, std = points[0].mean, points[0].std or 0.0
        axes.axhline(mean, color=color, linestyle=':', label=method_name(method))
        axes.axhspan(mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        return
    axes.errorbar(
        [count / 1e6 for count in points],
        [spread.mean for spread in points.values()],
        [spread.std or 0.0 for spread in points.values()],
        color=color,
        marker='o',
        markersize=4,
        linewidth=1.4,
        capsize=2,
        label=method_name(method),
    )


def described(path: Path) -> str | None:
    """The description in the file of a figure; None without a file."""
    if not path.is_file():
        return None
    found = re.search(r'<dc:description>(.*?)</dc:description>', path.read_text(encoding='utf-8'), re.S)
    return html.unescape(found[1]) if found else ''


def figure_behind(root: Path, rows: Sequence[Path]) -> dict[Path, str]:
    """The figure with its new text if it does not show what the files of rows say; empty without rows.

    The numbers decide and not the drawing, which depends on the version of matplotlib.
    """
    panels = lines_of([row for path in rows if path.is_file() for row in read_rows(path)])
    if not panels or described(root / IMAGE) == description(panels):
        return {}
    return {root / IMAGE: draw(panels)}
