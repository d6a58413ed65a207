"""Figures of the report, as SVG that follows the page's light or dark colors."""

import io
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..results.names import method_name, ordered_methods
from .curves import Curve
from .summary import Comparison, Spread
from .verdicts import against_mae, labels_name, method_order, rivals, task_name

# Figures are drawn in these colors; svg_of replaces them by the page's CSS variables.
INK, MUTED, RULE = '#1b1c1e', '#5d6066', '#d9dadd'
METHOD_COLORS = {'untrained': '#75777c', 'mae': '#0b62a4', 'bootmae': '#c2410c'}
# Further methods in order of appearance; colors without a CSS variable are readable on light and dark.
OTHER_COLORS = ('#6b4ea0', '#0f766e', '#a3195b', '#7a5c00', '#5b8c1a', '#b64fc8', '#9c7a5b', '#d0566b', '#3d8fa8')
KNOWN_OTHERS = 4  # number of these that have a CSS variable
VARIABLES = {
    INK: 'ink',
    MUTED: 'muted',
    RULE: 'rule',
    **{color: name for name, color in METHOD_COLORS.items()},
    **{color: f'other{number}' for number, color in enumerate(OTHER_COLORS, start=1)},
}
STYLE = {
    'svg.fonttype': 'none',
    'text.parse_math': False,
    'font.size': 10,
    'font.family': 'sans-serif',
    'axes.edgecolor': MUTED,
    'axes.labelcolor': MUTED,
    'axes.linewidth': 0.8,
    'text.color': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'xtick.color': MUTED,
    'ytick.color': MUTED,
    'xtick.major.size': 3,
    'ytick.major.size': 3,
    'grid.color': RULE,
    'grid.linewidth': 0.7,
    'figure.facecolor': 'none',
    'axes.facecolor': 'none',
    'legend.frameon': False,
    'legend.fontsize': 9,
}
DASHED = (0, (4, 1.6))
LINES = {'loss': ('loss', '-'), 'loss_pixel': ('pixel loss', '-'), 'loss_feature': ('feature loss', DASHED)}
MAX_POINTS = 300

LOSS_CAPTION = (
    'Logged training losses, one thin line per seed. The losses of the two methods are not comparable: MAE averages '
    'the pixel error over the masked patches; BootMAE weights each masked patch by its masked neighbors, normalizes '
    'its target per channel and adds the feature loss. Compare the encoders by the results above.'
)
COMPARISON_CAPTION = (
    'Results: each ring is a seed, the vertical stroke is the mean over seeds and the bar is one standard deviation to '
    'either side; the axis does not start at zero. Difference: each ring is a shared seed, the dot is the mean and the '
    'bar its standard error; the gray band is the margin of the rule, so a dot outside it reads “above” or “below”.'
)
SHARED_CAPTION = (
    'There are more methods than colors, so several share one. In the results each group has the methods in the order '
    'of the key; lines over blocks in the shared color cannot be told apart.'
)
RECONSTRUCTION_CAPTION = (
    'Only the masked patches are predicted; the visible patches are copied from the original. Both methods predict '
    'normalized patches, which are converted to pixels with the mean and variance of the original patch. Brightness '
    'and contrast of the predictions are therefore given; only their structure comes from the model.'
)

PREDICTION_CAPTION = (
    'Each row is one image. The first two columns are the image and its annotation; the others are predictions of the '
    'same model, trained from each of the encoders. Colors are classes, see the key below each picture; bright gray '
    'areas of a label map have no annotation and are ignored. Predictions never use the annotation. A few images show '
    'kinds of mistakes; only the numbers above, which cover all images and seeds, tell which encoder makes fewer.'
)


def series(curve: Curve) -> list[tuple[str, np.ndarray]]:
    """Losses of a curve to draw: its parts if it logs any, else the total."""
    parts = [key for key in curve.values if key.startswith('loss_')]
    return [(key, curve.values[key]) for key in parts or ['loss'] if key in curve.values]


def thin(steps: np.ndarray, values: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``limit`` evenly spread finite points, with the first and the last."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) <= limit:
        return steps, values
    keep = np.unique(np.linspace(0, len(steps) - 1, limit).round().astype(int))
    return steps[keep], values[keep]


def method_colors(methods: Iterable[str]) -> dict[str, str]:
    """A color for every method: fixed for the usual ones, the next free one for others; the last one repeats."""
    methods = ordered_methods(methods)
    others = [method for method in methods if method not in METHOD_COLORS]
    last = len(OTHER_COLORS) - 1
    return METHOD_COLORS | {method: OTHER_COLORS[min(number, last)] for number, method in enumerate(others)}


def loss_svg(curves: Sequence[Curve], colors: Mapping[str, str] | None = None) -> str:
    """Losses of one method on one data set, one thin line per seed."""
    colors = colors or method_colors(curve.parts[1] for curve in curves)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7), layout='constrained')
        axes = figure.add_subplot()
        for curve in curves:
            method = curve.parts[1]
            for key, values in series(curve):
                name, dashes = LINES.get(key, (key, '-'))
                labels = axes.get_legend_handles_labels()[1]
                axes.plot(
                    *thin(curve.steps, values),
                    color=colors[method],
                    linestyle=dashes,
                    linewidth=1.2,
                    alpha=0.85,
                    label=None if name in labels else name,
                )
        axes.set_xlabel('iteration')
        axes.set_ylabel('loss')
        axes.grid(axis='y')
        axes.margins(x=0.01)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(handlelength=2.4)
        return svg_of(figure, f'loss-{curves[0].name}' if curves else 'loss')


def comparison_svg(comparisons: Sequence[Comparison], colors: Mapping[str, str] | None = None) -> str:
    """Seeds, mean and standard deviation of every method, one group of lines per comparison of a data set."""
    colors = colors or method_colors(method_order(comparisons))
    with matplotlib.rc_context(STYLE):
        heights = [len(item.methods) + 0.9 for item in comparisons]
        figure, axes = _rows_figure(sum(heights), 'percent')
        y, middles = 0.0, []
        for item, height in zip(comparisons, heights, strict=True):
            methods = method_order([item])
            middles.append(y + (len(methods) - 1) / 2)
            for offset, method in enumerate(methods):
                _spread_marks(axes, y + offset, item.methods[method], colors[method])
            y += height
        _name_rows(axes, comparisons, middles, y - 1.2)
        return svg_of(figure, 'comparison-' + _data_of(comparisons))


def difference_svg(comparisons: Sequence[Comparison], colors: Mapping[str, str] | None = None) -> str:
    """Methods minus MAE: shared seeds, mean, standard error and margin of the rule, one group per comparison.

    BootMAE alone has the text color; several methods have their own colors.
    """
    methods = rivals(method_order(comparisons))
    items = [item for item in comparisons if any(against_mae(item, method) for method in methods)]
    colors = {'bootmae': INK} if methods == ['bootmae'] else colors or method_colors(method_order(comparisons))
    name = method_name(methods[0]) if len(methods) == 1 else 'method'
    step = max(len(methods), 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = _rows_figure((2.4 + 1.4 * (step - 1)) * len(items), f'{name} − MAE, points')
        axes.axvline(0, color=MUTED, linewidth=0.9)
        for row, item in enumerate(items):
            for offset, method in enumerate(methods):
                if against_mae(item, method):
                    _difference_marks(
                        axes, row + (offset - (step - 1) / 2) * 0.8 / step, item, method, colors[method], 0.3 / step
                    )
        _name_rows(axes, items, range(len(items)), len(items) - 0.5)
        return svg_of(figure, 'difference-' + _data_of(items))


def _rows_figure(rows: float, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 0.62 + 0.19 * rows), layout='constrained')
    axes = figure.add_subplot()
    axes.set_xlabel(label)
    axes.grid(axis='x')
    axes.set_axisbelow(True)
    axes.spines['left'].set_visible(False)
    axes.tick_params(axis='y', length=0)
    return figure, axes


def _name_rows(axes: Axes, items: Sequence[Comparison], middles: Sequence[float], bottom: float) -> None:
    names = ['\n'.join(filter(None, [task_name(item), labels_name(item)])) for item in items]
    axes.set_yticks(list(middles), names)
    axes.set_ylim(bottom, -0.7)


def _data_of(items: Sequence[Comparison]) -> str:
    return items[0].data if items else 'none'


def _rings(axes: Axes, y: float, values: Sequence[float], color: str) -> None:
    axes.plot(
        values,
        [y] * len(values),
        'o',
        markersize=5.5,
        markerfacecolor='none',
        markeredgecolor=color,
        markeredgewidth=0.9,
        alpha=0.75,
    )


def _spread_marks(axes: Axes, y: float, spread: Spread, color: str) -> None:
    _rings(axes, y, list(spread.values.values()), color)
    axes.plot([spread.mean] * 2, [y - 0.36, y + 0.36], '-', color=color, linewidth=1.8)
    if spread.std is not None:
        ends = [spread.mean - spread.std, spread.mean + spread.std]
        axes.plot(ends, [y, y], '-', color=color, linewidth=1.8)


def _difference_marks(axes: Axes, y: float, item: Comparison, method: str, color: str, half: float) -> None:
    ours, mae, found = item.methods[method], item.methods['mae'], against_mae(item, method)
    if found.margin is not None:
        axes.fill_betweenx([y - half, y + half], -found.margin, found.margin, color=RULE, linewidth=0)
    _rings(axes, y, [ours.values[seed] - mae.values[seed] for seed in ours.values if seed in mae.values], color)
    mean, error = found.difference.mean, found.difference.standard_error or 0.0
    axes.plot([mean - error, mean + error], [y, y], '-', color=color, linewidth=1.8)
    axes.plot([mean], [y], 'o', color=color, markersize=4.2)


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an inline ``<svg>`` element with the page's colors and fonts and unique ids."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={'Date': None})
    text = buffer.getvalue().decode()
    text = text[text.index('<svg') :]
    # matplotlib's style element would apply to the whole page.
    text = re.sub(r'<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>', '', text, flags=re.S)
    head, rest = text.split('>', 1)
    text = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', '', head) + '>' + rest
    text = re.sub(r'(fill|stroke|color): (#[0-9a-f]{6})', _page_color, text)
    text = re.sub(r'font-family: [^;"]*;', '', text)
    text = re.sub(r'>\s+<', '>\n<', text)
    return _own_ids(text, name)


def _page_color(match: re.Match) -> str:
    name = VARIABLES.get(match[2])
    return f'{match[1]}: var(--{name}, {match[2]})' if name else match[0]


def _own_ids(svg: str, name: str) -> str:
    """Prefix every id, so that a page can have several figures."""
    plain = re.sub(r'\W+', '-', name).strip('-').lower()
    prefix = f'{plain}-{zlib.crc32(name.encode()):08x}-'  # "mae (long)" and "mae-long" are two names
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace('href="#', f'href="#{prefix}')
    return svg.replace('url(#', f'url(#{prefix}')


def legend(methods: Sequence[str], colors: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Display name and CSS color of every method."""
    colors = colors or method_colors(methods)
    return [(method_name(method), _variable(colors[method])) for method in methods]


def _variable(color: str) -> str:
    """Argument of ``var()``: the CSS variable of a color, with the color as fallback if the variable may be missing."""
    further = color in OTHER_COLORS[KNOWN_OTHERS:]
    return f'{VARIABLES[color]}, {color}' if further else VARIABLES[color]
