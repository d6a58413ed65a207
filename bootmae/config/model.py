"""The model of a config."""

import copy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from ..checkpoints import load_run, read_checkpoint
from ..checkpoints.averages import with_weights
from .channels import warn_of_channels
from .weights import adopts_statistics, follow_statistics

DETECTION_HEADS = ('roi_head', 'bbox_head', 'mask_head', 'panoptic_head', 'rpn_head')


def model_config(cfg: Config) -> ConfigDict:
    """A copy of a config's model settings, with the shared data preprocessor unless the model has its own."""
    settings = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        settings.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return settings


def task_of(cfg: Config) -> str:
    """Return ``detection``, ``segmentation``, ``pretraining`` or ``classification``, according to the model."""
    if any(head in cfg.model for head in DETECTION_HEADS):
        return 'detection'
    if 'decode_head' in cfg.model:
        return 'segmentation'
    pretraining = 'head' not in cfg.model or (cfg.model.get('neck') or {}).get('type') == 'MAEPretrainDecoder'
    return 'pretraining' if pretraining else 'classification'


def build_model(cfg: Config, checkpoint: str | Path | None = None, source: str = 'online') -> nn.Module:
    """Build the model of a config.

    Args:
        cfg: The config.
        checkpoint: A checkpoint of a run of this config, all weights of which are loaded. None leaves the model as it
            was constructed, without ``init_weights``.
        source: ``raw`` or ``ema`` weights of a checkpoint with both, see :func:`weights_of`.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint does not fit the model, see :func:`load_run`, or its run normalized images
            otherwise, see :func:`follow_statistics`.
    """
    model = MODELS.build(model_config(cfg))
    if checkpoint is not None:
        content = with_weights(read_checkpoint(checkpoint), source, checkpoint)
        warn_of_channels(cfg, content, str(checkpoint))
        recorded = content.get('meta', {}).get('bootmae', {})
        follow_statistics(model, recorded, str(checkpoint), adopts_statistics(cfg))
        load_run(model, content, checkpoint)
    return model
