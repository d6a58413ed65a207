"""Curves of validation metrics and online probes during training, with all methods in one plot."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..results.names import LOGGED_METRICS, method_name, ordered_methods
from .curves import Curve, read_curve
from .figures import STYLE, method_colors, svg_of, thin

RANK = 'probe/rankme'
METRICS = LOGGED_METRICS | {
    'probe/knn': ('online k-NN', 1.0),
    'probe/linear': ('online logistic regression', 1.0),
    RANK: ('RankMe', 1.0),
}

FEW = 6  # curves with at most this many points have markers
METRIC_CAPTION = (
    'Validation results during training, percent, one line a seed. Online k-NN and logistic regression read the '
    'frozen encoder while it is pretrained. RankMe is the effective rank of its features, no accuracy: a fall that '
    'lasts is a collapse. Unlike losses, these numbers are comparable between methods, because all '
    'are evaluated on the same images in the same way. The last point of a fine-tuning, segmentation or detection run '
    'is the result above.'
)


def read_metrics(name: str, work_dir: str | Path) -> list[Curve]:
    """A curve, in percent (RankMe: a rank), for each metric that a training logged; may be empty.

    Args:
        name: As for :func:`~bootmae.report.read_curve`.
        work_dir: Work directory of a pretraining with an online probe, or of a downstream training.

    Raises:
        ValueError: A file of scalars is damaged.
    """
    found = []
    for key, (_, factor) in METRICS.items():
        try:
            curve = read_curve(name, work_dir, having=key)
        except FileNotFoundError:
            continue
        unit = 'iteration' if 'iter' in curve.values or curve.steps[-1] > _epochs(work_dir) else 'epoch'
        found.append(replace(curve, values={key: curve.values[key] * factor}, unit=unit))
    return found


def _epochs(work_dir: str | Path) -> float:
    """Number of epochs that the training has started; 0 if it does not count them."""
    try:
        return float(np.nanmax(read_curve('', work_dir).values.get('epoch', [0.0])))
    except FileNotFoundError:
        return 0.0


def metric_plots(curves: Sequence[Curve], colors: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Heading and SVG for every data set and metric; curves of a single point are left out."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        for key, values in curve.values.items():
            if np.isfinite(values).sum() > 1:
                groups.setdefault((curve.parts[0], key), []).append(curve)
    return [
        (', '.join(filter(None, [data, METRICS.get(key, (key, 1.0))[0]])), metric_svg(group, key, colors))
        for (data, key), group in groups.items()
    ]


def metric_svg(curves: Sequence[Curve], key: str, colors: Mapping[str, str] | None = None) -> str:
    """One metric of several trainings on one data set: one line per seed, one color per method."""
    methods = ordered_methods(curve.parts[1] for curve in curves)
    colors = colors or method_colors(methods)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7 + 0.18 * ((len(methods) + 2) // 3)), layout='constrained')
        axes = figure.add_subplot()
        for method in methods:
            label = method_name(method)
            for curve in (curve for curve in curves if curve.parts[1] == method):
                steps, values = thin(curve.steps, curve.values[key])
                axes.plot(
                    steps,
                    values,
                    color=colors[method],
                    linewidth=1.2,
                    alpha=0.85,
                    label=label,
                    marker='o' if len(steps) <= FEW else None,
                    markersize=2.5,
                )
                label = None
        axes.set_xlabel(curves[0].unit)
        axes.set_ylabel('effective rank' if key == RANK else 'percent')
        axes.grid(axis='y')
        axes.margins(x=0.02)
        figure.legend(loc='outside upper center', ncols=3, handlelength=1.6, columnspacing=1.2)  # never over a line
        return svg_of(figure, f'metric-{curves[0].parts[0]}-{key}')
