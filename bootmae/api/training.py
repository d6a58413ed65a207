"""Build the model of a config, or train it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..commands.train import train as train_config
from ..config.load import load_config
from ..config.model import build_model
from ..config.options import IMAGES
from .arguments import path_text, whole_number
from .quiet import one_training, undisturbed

EPOCHS = 'train_cfg.max_epochs'


def build(config: str | os.PathLike, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the model of a config with initial weights.

    Args:
        config: Name of a config (``bootmae_vitb``, ``bootmae::pretrain/bootmae_vitb.py``), or the path of one.
        options: Config values to override, by dotted key.

    Returns:
        The algorithm of a pretraining, such as :class:`BootMAE`, or the classifier, segmentor or detector of a
        downstream config; in training mode, on the CPU.

    Raises:
        FileNotFoundError: If there is no such config. Names similar ones.
        ValueError: If an option does not exist or a value does not fit.

    >>> model = bootmae.build('bootmae_debug', options={'model.backbone.arch.depth': 3})
    >>> type(model).__name__, len(model.backbone.blocks)
    ('BootMAE', 3)
    """
    with undisturbed():
        model = build_model(load_config(path_text(config, 'config'), _values(options)))
        model.init_weights()
    return model


def train(
    config: str | os.PathLike,
    data: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    work_dir: str | os.PathLike | None = None,
    max_epochs: int | None = None,
    init: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    resume_changed: bool = False,
    move_aside: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Path | None:
    """Train a config in this process, on one GPU if there is one. It logs as ``tools/train.py`` does.

    Args:
        config: Name of a config, or the path of one, as for :func:`build`.
        data: Images to use instead of those of the config, as ``--data`` of the tool: for pretraining folders of any
            depth or tar archives; for classification a folder with ``train`` and ``val``, or two folders; for
            segmentation and detection the root of the data.
        work_dir: Folder for logs and checkpoints, by default ``work_dirs/<config name>``.
        max_epochs: Number of epochs. A shorter run may need a shorter warm-up too (``param_scheduler.warmup``).
        init: Checkpoint of an encoder to start from, or the folder of a run (docs/transfer.md, docs/continued.md).
        resume: Continue the run in the work directory, or a checkpoint to continue from.
        resume_changed: Resume even if the config differs from that of the checkpoint; needs ``resume``.
        move_aside: Move checkpoints of an earlier run in the work directory into a subfolder, and start a new run.
        options: Further config values to override, by dotted key.

    Returns:
        The last checkpoint; None if the config saves none.

    Raises:
        FileNotFoundError: If a config, checkpoint or image folder is missing.
        ValueError: If a setting, the data or a checkpoint does not fit.

    >>> path = bootmae.train('bootmae_debug', work_dir='runs/a', max_epochs=1, options={'log_level': 'ERROR'})
    >>> path.name
    'epoch_1.pth'
    """
    values = _values(options)
    if data is not None:
        values[IMAGES] = [data] if isinstance(data, str | os.PathLike) else list(data)
        if not values[IMAGES]:
            raise ValueError('data=[]: give at least one path, or leave data out for the images of the config')
    if max_epochs is not None and values.setdefault(EPOCHS, whole_number(max_epochs, 'max_epochs')) != max_epochs:
        raise ValueError(f'max_epochs={max_epochs} and the option {EPOCHS}={values[EPOCHS]}: leave one out')
    with one_training():
        runner = train_config(
            path_text(config, 'config'),
            None if work_dir is None else path_text(work_dir, 'work_dir'),
            values,
            None if init is None else path_text(init, 'init'),
            resume='auto' if resume is True else None if resume in (None, False) else path_text(resume, 'resume'),
            resume_changed=resume_changed,
            move_old=move_aside,
        )
    newest = runner.message_hub.runtime_info.get('last_ckpt')
    return None if newest is None else Path(newest)


def _values(options: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(options, Mapping | None):
        raise ValueError(f'options={options!r:.60}: give a dict, such as {{"train_dataloader.batch_size": 64}}')
    return dict(options or {})
