"""The report: one self-contained HTML page from result rows, curves and pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ..results.names import method_name, ordered_methods
from ..results.rows import ResultRow, published_rows, replace_file
from .blocks import BLOCKS_CAPTION, block_plots
from .classes import ClassResult, class_tables
from .curves import Curve
from .figures import (
    COMPARISON_CAPTION,
    LOSS_CAPTION,
    PREDICTION_CAPTION,
    RECONSTRUCTION_CAPTION,
    SHARED_CAPTION,
    comparison_svg,
    difference_svg,
    legend,
    loss_svg,
    method_colors,
)
from .metric_curves import METRIC_CAPTION, metric_plots
from .overview import overview
from .progress import CellState, progress_of
from .published import beside_published, measured_at, missing_commands
from .summary import Comparison, last_blocks, summarize
from .tables import checkpoint_table, comparison_table, constants, cost_sentences, cost_table, rows_table
from .verdicts import (
    DENSE_TASKS,
    RULE,
    against_mae,
    find_verdicts,
    headline,
    in_order,
    learned_headline,
    method_order,
    plain_task_name,
    rivals,
)

LARGEST_PICTURE = 300_000  # bytes; larger pictures are scaled down and stored as WebP
LONGEST_SIDE = 1600  # pixels
MANY = 4  # with more methods the table of results uses the full width
COST_NOTE = (
    'GPU-hours: the pretraining plus one of its evaluations, from the cheapest to the most expensive. Memory: the '
    'peak of one pretraining process, GPU memory or, on a CPU, resident memory.'
)
MEDIA = {'PNG': 'image/png', 'JPEG': 'image/jpeg', 'WEBP': 'image/webp'}

READING = (
    'k-NN, logistic regression and linear probes evaluate the frozen encoder. k-NN measures which images lie close '
    'together; the other two measure what one linear layer can read from the features. Logistic regression is fitted '
    'to stored features; a linear probe is a layer trained by SGD or LARS. The untrained encoder, random weights under '
    'the same evaluation, is the floor: a pretraining at this level has learned nothing that these tasks can measure.',
    'The spread covers the seeds of initialization, masks and image order, and of the draw of few labels. It does not '
    'cover other data, hyperparameters or model sizes.',
    'Both methods are compared after the same number of images where the section on cost says so. BootMAE needs more '
    'time per image, because a second encoder processes the whole image; a comparison at equal time can turn out '
    'differently.',
)
DENSE_READING = (
    'Segmentation and detection train the whole model, including the encoder. mIoU is the intersection over union of '
    'the pixels, averaged over classes. Box AP and mask AP are COCO’s average precision, averaged over classes and '
    'over the IoU thresholds 0.50 to 0.95. All are in percent, but none is an accuracy, and numbers of different '
    'tasks are not comparable.'
)
DEMO_READING = (
    'Rows labeled “demo” come from a very small model, trained for minutes on few small images. They show that the '
    'pipeline works end to end and that the pretraining learns something. They do not show which method is better at '
    'the size of the publications, which use ViT-B, ImageNet-1k and 800 epochs; a lead in the demo does not transfer.'
)


def build_page(
    title: str,
    rows: Sequence[ResultRow],
    curves: Sequence[Curve] = (),
    pictures: Mapping[str, bytes] | None = None,
    provenance: Mapping[str, Any] | None = None,
    commands: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    predictions: Mapping[str, bytes] | None = None,
    metrics: Sequence[Curve] = (),
    classes: Sequence[ClassResult] = (),
    cells: Sequence[CellState] = (),
) -> str:
    """The page as text, self-contained.

    Args:
        title: Title of the page.
        rows: Result rows; published ones among them are ignored, because the page has its own for the data of the rows.
        curves: Loss curves of the pretrainings, named ``data/method`` or ``data/method/seed``.
        pictures: PNG, JPEG or WebP files by caption, such as reconstruction grids.
        provenance: Versions, device, commit and so on; values may be texts, numbers, lists or mappings.
        commands: Commands by purpose.
        notes: Further paragraphs on how to read the page.
        predictions: Pictures of predictions beside the annotation, by caption.
        metrics: Curves of validations and online probes, named likewise; see :func:`~bootmae.report.read_metrics`.
        classes: Data set, task, method, seed, metric, and percent by class; see :func:`~bootmae.report.read_classes`.
        cells: Name, state and detail of every cell of a suite; shown at the top while any is not ``done``.

    Raises:
        ValueError: A picture cannot be read.
    """
    rows = [row for row in rows if row.label != 'paper']
    published = [row for row in published_rows() if row.data in {row.data for row in rows}]
    everything = in_order(summarize(rows))
    comparisons = last_blocks(everything)
    found = find_verdicts(comparisons)
    sentence, tone = headline(found)
    methods = method_order(comparisons)
    colors = method_colors([*methods, *ordered_methods(curve.parts[1] for curve in (*curves, *metrics))])
    demo = any(row.label == 'demo' for row in rows)
    dense = any(item.task in DENSE_TASKS for item in comparisons)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template('page.html.j2').render(
        title=title,
        progress=progress_of(cells),
        lede=lede(comparisons),
        headline=sentence,
        tone=tone,
        demo=demo,
        learned=learned_headline(found),
        verdicts=_by_data(found),
        rule=RULE,
        legend=legend(methods, colors),
        overview=overview(comparisons),
        comparison=comparison_table(everything),
        plots=_comparison_plots(comparisons, colors) + block_plots(everything, colors),
        many=len(methods) > MANY,
        classes=class_tables(classes),
        comparison_caption=' '.join(
            [
                COMPARISON_CAPTION,
                *[BLOCKS_CAPTION] * (len(everything) > len(comparisons)),
                *[SHARED_CAPTION] * (len({colors[method] for method in methods}) < len(methods)),
            ]
        ),
        predictions=[_embed(caption, data) for caption, data in (predictions or {}).items()],
        prediction_caption=PREDICTION_CAPTION,
        published=beside_published(published, rows),
        compared=any(measured_at(rows, row) for row in published),
        missing=missing_commands(published, rows),
        metrics=metric_plots(metrics, colors),
        metric_caption=METRIC_CAPTION,
        losses=_loss_plots(curves, colors),
        loss_caption=LOSS_CAPTION,
        pictures=[_embed(caption, data) for caption, data in (pictures or {}).items()],
        picture_caption=RECONSTRUCTION_CAPTION,
        cost=cost_table(rows),
        cost_sentences=cost_sentences(rows),
        cost_note=COST_NOTE if any(row.gpu_hours or row.memory for row in rows) else '',
        rows=rows_table(rows),
        constants=constants(rows),
        checkpoints=checkpoint_table(rows),
        provenance=_provenance(rows, provenance or {}),
        commands=commands or {},
        reading=[
            *([DEMO_READING] if demo else []),
            READING[0],
            *([DENSE_READING] if dense else []),
            *READING[1:],
            *notes,
        ],
    )


def write_page(path: str | Path, *args: Any, **keywords: Any) -> Path:
    """Build the page and write it atomically; the arguments are those of :func:`build_page`."""
    replace_file(path, build_page(*args, **keywords))
    return Path(path)


def lede(comparisons: Sequence[Comparison]) -> str:
    """What was compared, in one sentence. It names the data sets of the tasks; pretrainings may have used others."""
    if not comparisons:
        return 'No measured rows yet: run the pretrainings and their evaluations first.'
    methods = method_order(comparisons)
    pretrained = [method_name(method) for method in methods if method != 'untrained']
    encoders = []
    if pretrained:
        encoders.append(f'Encoders pretrained with {_listed(pretrained)}')
    if 'untrained' in methods:
        encoders.append('untrained ones' if pretrained else 'Untrained encoders')
    tasks: dict[tuple[str, ...], list[str]] = {}
    for data, group in _by_data(comparisons).items():
        names = tuple(dict.fromkeys(plain_task_name(item) for item in group))
        tasks.setdefault(names, []).append(data)
    judged = ', and '.join(f'by {_listed(names)} on {_listed(data)}' for names, data in tasks.items())
    seeds = {spread.n for item in comparisons for spread in item.methods.values()}
    count = str(max(seeds)) if len(seeds) == 1 else f'{min(seeds)} to {max(seeds)}'
    return f'{", and ".join(encoders)}, judged {judged}; {count} seed{"" if seeds == {1} else "s"} each.'


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'


def _by_data(items: Sequence[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item.data, []).append(item)
    return groups


def _comparison_plots(comparisons: Sequence[Comparison], colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """Heading and SVG for every data set: the results, and the differences to MAE if it was measured."""
    plots = []
    for data, group in _by_data(comparisons).items():
        plots.append((f'{data}, results', comparison_svg(group, colors)))
        if any(against_mae(item, method) for item in group for method in rivals(method_order(group))):
            plots.append((f'{data}, difference', difference_svg(group, colors)))
    return plots


def _loss_plots(curves: Sequence[Curve], colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """Heading and SVG for every data set and method."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.parts[:2], []).append(curve)
    order = {'mae': 0, 'bootmae': 1}
    data = list(dict.fromkeys(key[0] for key in groups))
    keys = sorted(groups, key=lambda key: (data.index(key[0]), order.get(key[1], 2)))
    return [(', '.join(filter(None, [key[0], method_name(key[1])])), loss_svg(groups[key], colors)) for key in keys]


def _embed(caption: str, data: bytes) -> dict[str, Any]:
    """A picture as a data URI with its size; a large one is scaled down."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if len(data) > LARGEST_PICTURE:
                picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE * 2))
                buffer = io.BytesIO()
                picture.save(buffer, 'WEBP', quality=85, method=4)
                data, kind = buffer.getvalue(), 'WEBP'
            else:
                kind = picture.format
            width, height = picture.size
            uri = f'data:{MEDIA[kind]};base64,{base64.b64encode(data).decode()}'
    except (OSError, KeyError) as error:
        raise ValueError(f'picture {caption!r} cannot be read ({error}); give a PNG, JPEG or WebP file') from None
    return {'caption': caption, 'uri': uri, 'width': width, 'height': height}


def _provenance(rows: Sequence[ResultRow], given: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Name and lines: the given facts, then those from the measured rows."""
    entries = [(str(name).replace('_', ' '), _lines(value)) for name, value in given.items()]
    measured = [row for row in rows if row.measured]
    known = {name.lower() for name, _ in entries}
    dates = sorted({row.date for row in measured} - {''})
    if dates:
        entries.append(('evaluated', [' to '.join(dict.fromkeys((dates[0], dates[-1])))]))
    for column, name in (
        ('device', 'device'),
        ('precision', 'precision'),
        ('commit', 'commit'),
        ('config', 'config files'),
    ):
        values = sorted({getattr(row, column) for row in measured} - {''})
        if values and name not in known:
            entries.append((name, values))
    return entries + _fingerprints(measured)


def _fingerprints(rows: Sequence[ResultRow]) -> list[tuple[str, list[str]]]:
    """Fingerprints of the test data by data set, and config hashes by data set and task."""
    data, configs = {}, {}
    for row in rows:
        if row.data_hash:
            data.setdefault(row.data, {})[row.data_hash] = None
        if row.config_hash:
            configs.setdefault(f'{row.data}, {plain_task_name(row)}', {})[row.config_hash] = None
    found = (('fingerprints of the judged data', data), ('hashes of the evaluation settings', configs))
    return [
        (name, [f'{place}: {", ".join(values)}' for place, values in places.items()])
        for name, places in found
        if places
    ]


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f'{key} {item}' for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [str(value)]
