"""The figure of results after several blocks of an encoder; verdicts use the last one."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from .figures import STYLE, method_colors, svg_of
from .summary import Comparison, block_of, by_blocks
from .verdicts import labels_phrase, method_order, task_name

BLOCKS_CAPTION = (
    'By block: frozen features after several blocks, one line per method, mean over seeds with a band of one standard '
    'deviation. The verdicts, the overview and the other figures use the last of these blocks for every method. '
    'Choosing the best block would be a choice by the test images.'
)


def block_plots(comparisons: Sequence[Comparison], colors: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Heading and SVG for every data set, task and number of labels with results after several blocks."""
    return [
        (
            ', '.join(filter(None, [group[0].data, task_name(group[0]), labels_phrase(group[0]), 'by block'])),
            block_svg(group, colors),
        )
        for group in by_blocks(comparisons)
        if len(group) > 1
    ]


def block_svg(group: Sequence[Comparison], colors: Mapping[str, str] | None = None) -> str:
    """Percent over blocks, one line per method."""
    methods = method_order(group)
    colors = colors or method_colors(methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7), layout='constrained')
        axes = figure.add_subplot()
        for method in methods:
            points = [(block_of(item), item.methods[method]) for item in group if method in item.methods]
            blocks, means = [block for block, _ in points], [spread.mean for _, spread in points]
            stds = [spread.std or 0.0 for _, spread in points]
            axes.plot(blocks, means, color=colors[method], linewidth=1.4, marker='o', markersize=3)
            if any(stds):
                low, high = ([mean + sign * std for mean, std in zip(means, stds, strict=True)] for sign in (-1, 1))
                axes.fill_between(blocks, low, high, color=colors[method], alpha=0.15, linewidth=0)
        axes.set_xticks([block_of(item) for item in group])
        axes.set_xlabel('block')
        axes.set_ylabel('percent')
        axes.grid(axis='y')
        axes.margins(x=0.03)
        first = group[0]
        return svg_of(figure, f'blocks-{first.data}-{first.task}-{first.labels}-{first.protocol}')
