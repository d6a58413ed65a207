"""The report of a suite, which may be unfinished: rows, curves, pictures, commands, provenance."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import to_2tuple

from ..config.channels import format_of_config
from ..config.model import build_model
from ..data.subsets import spread
from ..evaluation.predict import image_of, instances, label_map, predict
from ..report.classes import ClassResult, class_results
from ..report.curves import Curve, read_curve
from ..report.metric_curves import read_metrics
from ..report.page import write_page
from ..results.provenance import device_name, git_commit, versions
from ..results.rows import ResultRow
from ..visualization.grids import reconstruction_grid
from ..visualization.predictions import detection_grid, segmentation_grid
from ..visualization.reconstruct import as_colors, brightness, draw_masks, hide, reconstruct, shown_channels
from .cells import Cell, last_checkpoint, shell, suite_command
from .collect import cell_config, data_name
from .job_state import DONE, read_job_state, state_of

RECONSTRUCTED, PREDICTED = 6, 5  # images


def write_report(cells: Sequence[Cell], rows: Sequence[ResultRow], path: Path, pictures: bool = True) -> Path:
    """Write the report of a suite.

    Args:
        cells: All cells of the suite, finished or not.
        rows: Results of the finished ones.
        path: HTML file to write.
        pictures: Whether the report shows test images, with reconstructions and predictions.
    """
    done = [cell for cell in cells if state_of(cell) == DONE]
    suite = cells[0].suite
    return write_page(
        path,
        title=suite.title,
        rows=rows,
        curves=curves(done),
        pictures=reconstructions(done) if pictures else {},
        predictions=predictions(done) if pictures else {},
        notes=suite.notes,
        commands=commands(cells),
        provenance=dict(
            suite=suite.path.name,
            commit=git_commit(),
            device=device_name(),
            cores=os.cpu_count(),
            **versions(['bootmae']),
        ),
        cells=[(cell.name, state_of(cell), read_job_state(cell).detail) for cell in cells],
        metrics=metrics(done),
        classes=classes(done),
    )


def pretraining_name(cell: Cell) -> str:
    """Name of a pretraining's data in the report; empty for a single pretraining."""
    return cell.training.name.partition('-')[2]


def curves(done: Sequence[Cell]) -> list[Curve]:
    """Loss curves of the pretrainings."""
    return [read_curve(_curve_name(cell), cell.run) for cell in done if cell.task is None]


def metrics(done: Sequence[Cell]) -> list[Curve]:
    """Metrics measured during trainings: validations and online probes."""
    return [curve for cell in done if cell.trains for curve in read_metrics(_curve_name(cell), cell.run)]


def classes(done: Sequence[Cell]) -> list[ClassResult]:
    """Per-class results of trained models."""
    return [
        result
        for cell in done
        if cell.trains and cell.task
        for result in class_results(
            _curve_name(cell), cell.folder / 'test' if cell.task.test else cell.run, cell.task.kind
        )
    ]


def _curve_name(cell: Cell) -> str:
    """Data, method and seed of a curve."""
    data = data_name(cell) if cell.task else pretraining_name(cell)
    return f'{data}/{cell.method.name}/{cell.seed}'


def commands(cells: Sequence[Cell]) -> dict[str, str]:
    """The command of the suite, and that of the first cell of each training and of each method with options."""
    found = {'This comparison': suite_command(cells[0])}
    for cell in cells:
        if cell.needs is None or state_of(cell.needs) == DONE:
            for command in cell.commands(cell.training.gpus):
                words = [word for word in command if word != '--resume']
                own = f', {cell.method.name}' if cell.task is None and cell.method.options else ''
                found.setdefault(cell.training.name + own, shell(words))
    return found


def first_of_methods(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The first cell of each method, by its name."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.method.name, cell)
    return first


def reconstructions(done: Sequence[Cell]) -> dict[str, bytes]:
    """A picture per pretraining: test images under BootMAE's masks, reconstructed by the first seed of each method."""
    pictures = {}
    for name in dict.fromkeys(cell.training.name for cell in done if cell.task is None):
        first = first_of_methods([cell for cell in done if cell.training.name == name])
        seeds = ', '.join(sorted({str(cell.seed) for cell in first.values()}))
        data = pretraining_name(next(iter(first.values())))
        caption = f"{f'{data}: test' if data else 'Test'} images under BootMAE's block-wise masks, seed {seeds}"
        if picture := drawn(caption, _reconstruction, first, done):
            pictures[caption] = picture
    return pictures


def drawn(caption: str, draw: Callable[..., bytes | None], *args: Any) -> bytes | None:
    """The picture that a function draws; None if it fails, because a report without it is better than no report."""
    try:
        return draw(*args)
    except Exception as error:
        print(f'the report has no picture "{caption}": {type(error).__name__}: {error}', file=sys.stderr)
        return None


def coloring(images: np.ndarray, cfg: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What makes RGB uint8 (n, H, W, 3) of images (n, H, W, C) and their reconstructions, as in tools/visualize.py."""
    chosen = shown_channels(images)
    return partial(as_colors, chosen=chosen, limits=brightness(images, chosen) if cfg.get('image_channels') else None)


def _reconstruction(first: dict[str, Cell], done: Sequence[Cell]) -> bytes | None:
    """The picture; None without a BootMAE run, whose masks are used, or without labeled images of the same size."""
    plain_first = sorted(first.values(), key=lambda cell: bool(cell.method.options))
    ours = next((cell for cell in plain_first if cell_config(cell).model.type == 'BootMAE'), None)
    judged = next(
        (cell for cell in done if cell.needs in first.values() and cell.task.kind not in ('segmentation', 'detection')),
        None,
    )
    if ours is None or judged is None:
        return None
    cfg = cell_config(ours)
    images = test_images(cell_config(judged), RECONSTRUCTED)
    color = coloring(images, cfg)
    size, patch = cfg.model.backbone.img_size, cfg.model.backbone.patch_size
    if images.shape[1:3] != ((size, size) if isinstance(size, int) else tuple(size)):
        return None
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    with torch.device('meta'):
        ids_shuffle, num_masked = draw_masks(build_model(cfg), len(images))
    panels = dict(original=color(images), masked=hide(color(images), ids_shuffle, num_masked, patch))
    for method, cell in first.items():
        if not _same_task(cell_config(cell).model, cfg.model):
            continue
        model = build_model(cell_config(cell), last_checkpoint(cell.run)).eval()
        panels[method] = color(reconstruct(model, images, ids_shuffle, num_masked, patch))
    return reconstruction_grid(panels)


def _same_task(model: ConfigDict, ours: ConfigDict) -> bool:
    """Whether a model can predict the same masked patches.

    Only MAE and BootMAE are supported, and options may have changed the patch size or BootMAE's mask ratio.
    """
    sizes, masked = zip(
        *(
            (
                [to_2tuple(part.backbone.get(key)) for key in ('img_size', 'patch_size')],
                part.get('masking', {}).get('num_masked'),
            )
            for part in (model, ours)
        ),
        strict=True,
    )
    return sizes[0] == sizes[1] and (model.type == 'MAE' or (model.type == 'BootMAE' and masked[0] == masked[1]))


def test_images(cfg: Config, count: int) -> np.ndarray:
    """Evenly spread test images of a classification config, as its model sees them.

    They are RGB uint8 (n, H, W, 3), or with ``image_channels`` float32 (n, H, W, C) of 0 to 255.
    """
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, test_mode=True))
    images = [dataset[int(index)]['inputs'] for index in spread(len(dataset), count)]
    step = 1 if cfg.get('image_channels') else -1  # colors are read as BGR
    return np.stack([image.permute(1, 2, 0).numpy()[..., ::step] for image in images])


def predictions(done: Sequence[Cell]) -> dict[str, bytes]:
    """A picture per segmentation and detection task: predictions of each method's first seed beside the annotation."""
    pictures = {}
    for name in dict.fromkeys(cell.training.name for cell in done if cell.task):
        cells = [cell for cell in done if cell.training.name == name]
        task = cells[0].task
        if task.kind not in ('segmentation', 'detection'):
            continue
        first = first_of_methods([cell for cell in cells if cell.seed == cells[0].seed])
        caption = f'{data_name(cells[0])}, {task.kind}: the first test images, runs of seed {cells[0].seed}'
        if picture := drawn(caption, _predictions, first, task.kind):
            pictures[caption] = picture
    return pictures


def _predictions(first: dict[str, Cell], kind: str) -> bytes:
    configs = {method: cell_config(cell) for method, cell in first.items()}
    cfg = next(iter(configs.values()))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes, palette = dataset.metainfo['classes'], [tuple(color) for color in dataset.metainfo['palette']]
    chosen = range(min(PREDICTED, len(dataset)))
    samples = {method: predict(configs[method], last_checkpoint(cell.run), chosen) for method, cell in first.items()}
    truth = next(iter(samples.values()))
    images = [image_of(sample, format_of_config(cfg)) for sample in truth]
    if len({image.shape for image in images}) > 1:  # a grid needs one size
        keep = [index for index, image in enumerate(images) if image.shape == images[0].shape]
        images, truth = [images[index] for index in keep], [truth[index] for index in keep]
        samples = {method: [found[index] for index in keep] for method, found in samples.items()}
    stacked = np.stack(images)
    shown = coloring(stacked, cfg)(stacked)
    if kind == 'segmentation':
        panels = {'truth': np.stack([label_map(sample, truth=True) for sample in truth])}
        panels |= {method: np.stack(list(map(label_map, found))) for method, found in samples.items()}
        return segmentation_grid(shown, panels, palette, classes)
    boxes = {'truth': [instances(sample, truth=True) for sample in truth]}
    boxes |= {method: list(map(instances, found)) for method, found in samples.items()}
    return detection_grid(shown, boxes, classes, palette)
