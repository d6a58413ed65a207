"""The dense half of ``make demo``: UperNet and Mask R-CNN on digit scenes, from the demo's encoders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.scene_datasets import PALETTE
from ..data.scenes import SceneSpec
from ..provenance import REPOSITORY
from ..report.curves import read_curve
from ..report.predictions import detection_grid, segmentation_grid
from ..report.rows import ResultRow
from .predict import image_of, instances, label_map, predict
from .results import result_row, run_facts
from .run import load_config

DATA = 'digit scenes'


@dataclass(frozen=True)
class DenseTask:
    """One downstream task: its config, and the metrics of its validation by their names in rows, in percent."""

    name: str
    config: str
    protocol: str
    metrics: dict[str, tuple[str, float]]
    length: str  # the option that sets how long it trains
    small: int  # its value in the small demo


TASKS = (
    DenseTask('segmentation', 'configs/seg/upernet_debug.py', 'UperNet, single scale', {'mIoU': ('mIoU', 1.0)},
              'train_cfg.max_iters', 40),
    DenseTask('detection', 'configs/det/mask_rcnn_debug.py', 'Mask R-CNN',
              {'box AP': ('coco/bbox_mAP', 100.0), 'mask AP': ('coco/segm_mAP', 100.0)}, 'train_cfg.max_epochs', 1),
)


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a work directory."""
    return Path((folder / 'last_checkpoint').read_text().strip())


def dense_rows(task: DenseTask, folder: Path, encoder: str | None, **fields) -> Iterator[ResultRow]:
    """The rows of a finished run, one a metric.

    Args:
        task: what was trained.
        folder: its work directory.
        encoder: file that it started from; None: untrained.
        fields: further columns, ``method`` and ``seed`` among them.
    """
    run = run_facts(str(last_checkpoint(folder)))
    for metric, (key, factor) in task.metrics.items():
        value = read_curve('', folder, having=key).values[key][-1]
        yield result_row(encoder, run.get('init_hash', ''), data=DATA, task=task.name, labels='all', metric=metric,
                         value=float(value) * factor, protocol=task.protocol, **fields)


def dense_pictures(task: DenseTask, folders: dict[str, Path], count: int = 5) -> bytes:
    """Predictions of each method's run, beside the truth, on the first test scenes."""
    cfg = load_config(REPOSITORY / task.config)
    spec = SceneSpec(**cfg.test_dataloader.dataset.scenes)
    palette = PALETTE[:len(spec.classes)]
    samples = {method: predict(cfg, last_checkpoint(folder), range(count)) for method, folder in folders.items()}
    first = next(iter(samples.values()))
    images = np.stack([image_of(sample) for sample in first])
    if task.name == 'segmentation':
        panels = {'truth': np.stack([label_map(sample, truth=True) for sample in first])}
        panels |= {method: np.stack(list(map(label_map, found))) for method, found in samples.items()}
        return segmentation_grid(images, panels, palette, spec.classes)
    panels = {'truth': [instances(sample, truth=True) for sample in first]}
    panels |= {method: list(map(instances, found)) for method, found in samples.items()}
    return detection_grid(images, panels, spec.names, palette[1:])
