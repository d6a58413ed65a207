"""Plan of a suite without running it: state, images, batch and estimated GPU-hours of each cell."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.hub import is_name
from ..commands.plan import build_images, build_on_meta, count_images, gflop_per_image, length_of, task_of
from ..config.batch import apply_batch
from ..config.steps import check_training
from ..config.weights import apply_init, check_files
from ..report.tables import align_columns
from ..text import count_of
from .cells import Cell
from .collect import RowKey, cell_config, repeated_rows, row_keys
from .job_state import DONE, WAITING, state_of

TFLOPS = 120.0
ASSUMED = (
    "GPU-hours are estimated: FLOP divided by a sustained {tflops:g} TFLOP/s per GPU (--tflops; the authors' release "
    'reaches 111 in ViT-B pretraining on an H100, 1,198 images/s). Detection assumes the test image size and includes '
    'backbone, pyramid and proposals, but not the RoI heads.'
)


@dataclass(frozen=True)
class Estimate:
    """Cost of one cell.

    Attributes:
        images: Images that it processes; None if the cell cannot run like this.
        gflop: GFLOP per image; None if unknown.
        batch: Global batch of its training as text; empty without a training.
        fault: What would stop the cell; empty if nothing was found.
        rows: Keys of its result rows.
    """

    images: int | None
    gflop: float | None
    batch: str
    fault: str = ''
    rows: tuple[RowKey, ...] = ()

    def gpu_hours(self, tflops: float) -> float | None:
        return None if self.gflop is None or self.images is None else self.images * self.gflop / (tflops * 1e3) / 3600


def estimate(cell: Cell, known: dict, gpus: int) -> Estimate:
    """Cost of one cell, and what would stop it.

    Args:
        cell: The cell.
        known: Cache; cells that differ only in the seed share an estimate.
        gpus: GPUs of the cell.
    """
    own = repr((cell.method.options, cell.method.init, cell.method.init_source)) if cell.task is None else ''
    key = cell.config, cell.training.name, gpus, own
    if key not in known:
        try:
            known[key] = _estimate(cell, gpus)
        except (ValueError, OSError) as error:
            known[key] = Estimate(None, None, '', str(error))
    found, name = known[key], 'weights' if cell.task else 'init'
    fault = '' if found.fault else fault_of_weights(cell)
    return replace(found, fault=f'methods.{cell.method.name}.{name}: {fault}') if fault else found


def fault_of_weights(cell: Cell) -> str:
    """What is wrong with the weights that the suite file gives; empty if nothing was found."""
    if not cell.given_weights:
        return ''
    try:
        weights = str(cell.weights)
    except ValueError as error:
        return str(error)
    if Path(weights).is_dir():
        return f'{weights} is a folder without a checkpoint'
    return '' if is_name(weights) or Path(weights).exists() else f'there is no {weights}'


def _estimate(cell: Cell, gpus: int) -> Estimate:
    cfg = cell_config(cell)
    keys = tuple(row_keys(cell, cfg)) if cell.task else ()
    if not cell.trains:
        model = build_on_meta(cfg)
        images, fault = count_images(cfg, classes=False)
        if not fault:
            build_images(cfg, 'test_dataloader', classes=False)
        gflop = gflop_per_image(model, 'classification') / 3
        return Estimate(images, gflop, '', fault or '', keys)
    batch = apply_batch(cfg, gpus)
    images, fault = count_images(cfg)
    check_files(cfg)
    if not fault:
        check_training(cfg)
        for loader in ('val_dataloader', *(['test_dataloader'] if cell.task and cell.task.test else [])):
            if cfg.get(loader):
                build_images(cfg, loader)
    if cell.task is None and cell.given_weights and not is_name(cell.given_weights) and not fault_of_weights(cell):
        apply_init(cfg, cell.weights, cell.source)
    model, task = build_on_meta(cfg), task_of(cfg)
    gflop = detection_gflop(model, detection_size(cfg)) if task == 'detection' else gflop_per_image(model, task)
    return Estimate(length_of(cfg, batch, images).images, gflop, str(batch), fault or '', keys)


def detection_size(cfg: Config) -> tuple[int, int]:
    """Height and width of a 4:3 photograph after the test's ``Resize``, rounded up to multiples of 32."""
    scale = next((step['scale'] for step in cfg.test_dataloader.dataset.pipeline if step['type'] == 'Resize'), None)
    short, long = sorted(scale or cfg.model.backbone.img_size)
    return tuple(-(-side // 32) * 32 for side in (short, min(long, short * 4 // 3)))


def detection_gflop(model: torch.nn.Module, size: tuple[int, int]) -> float:
    """GFLOP of a detector's training step for one image of this size, without the RoI heads."""
    images = torch.empty(1, 3, *size, device='meta')
    with FlopCounterMode(display=False) as counter:
        found = model.rpn_head(model.extract_feat(images))
        sum(level.sum() for kind in found for level in kind).backward()
    return counter.get_total_flops() / 1e9


def hours_text(hours: float | None) -> str:
    if hours is None:
        return '?'
    return '< 0.1' if hours < 0.1 else f'{hours:,.1f}'


def plan_text(
    cells: Sequence[Cell], tflops: float = TFLOPS, gpus: int | None = None, redone: Collection[str] = ()
) -> tuple[str, str]:
    """A line for each cell and the sum, and what would stop cells.

    Args:
        cells: Cells to run.
        tflops: Sustained TFLOP/s of a GPU.
        gpus: Most GPUs of a cell; 0: one process on the CPU; None: as many as the suite file says.
        redone: Names of cells whose results would be deleted.
    """
    known: dict = {}
    lines, hours, keys = [], [], []
    faults: dict[str, list[str]] = {}
    for cell in cells:
        processes = cell.training.gpus if gpus is None else min(cell.training.gpus, max(gpus, 1))
        found = estimate(cell, known, processes)
        hours.append(found.gpu_hours(tflops))
        keys.append((cell, found.rows))
        images = '?' if found.images is None else f'{found.images:,}'
        state = WAITING if cell.name in redone else state_of(cell)
        lines.append((cell.name, state, cell.config, images, found.batch, hours_text(hours[-1])))
        if found.fault and state != DONE:
            faults.setdefault(found.fault, []).append(cell.name)
    heads = ('cell', 'state', 'config', 'images', 'batch', 'GPU-hours')
    left = sum(hour or 0.0 for hour, line in zip(hours, lines, strict=True) if line[1] != DONE)
    plan = [
        align_columns([heads, *lines], right=(3, 5)),
        f'{count_of(len(cells), "cell")}, about {left:,.0f} GPU-hours left',
        ASSUMED.format(tflops=tflops),
    ]
    lines_of_faults = [f'{", ".join(names)}: {fault}' for fault, names in faults.items()]
    return '\n'.join(plan), '\n'.join(filter(None, [*lines_of_faults, repeated_rows(keys)]))
