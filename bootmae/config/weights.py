"""Start weights: the encoder of a checkpoint, and the input statistics that it was trained with."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ..checkpoints import error_context, match, read_encoder
from ..checkpoints.load import tensors_hash
from .schema import groups

ADDRESS = re.compile(r'[a-z0-9+.-]+:', re.IGNORECASE)  # https://..., torchvision://..., timm:NAME


def apply_init(cfg: Config, checkpoint: str, source: str = 'online', content: dict | None = None) -> None:
    """Start the backbone from the encoder of a checkpoint.

    Changes ``model.backbone.init_cfg`` and ``init_hash``. With ``adopt_statistics=True`` in the config also changes the
    mean and standard deviation of the data preprocessor to those of the checkpoint. ``adapt_channels`` in the config
    takes encoders for another number of channels. ``content`` is that of the file, if it was read before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the config does not start from an encoder, if the encoder does not fit the backbone or is not
            finite, or if the checkpoint was trained with other input statistics.
    """
    backbone = cfg.model.get('backbone', {}).get('type')
    if backbone != 'TransferViT' and (backbone != 'PlainViT' or 'head' not in cfg.model):
        raise ValueError(
            f'--init starts a downstream model with a PlainViT or TransferViT backbone, not '
            f'{cfg.model.type}: to go on with a pretraining run use --resume'
        )
    encoder = read_encoder(checkpoint, source, content)
    channels = cfg.get('adapt_channels')
    if channels not in (None, 'repeat', 'sum'):
        raise ValueError(f'adapt_channels={channels!r} must be repeat, sum or None')
    if encoder.mean is not None and len(encoder.mean) == len(input_statistics(cfg)[0]):
        if cfg.get('adopt_statistics'):
            preprocessor_of(cfg).update(mean=list(encoder.mean), std=list(encoder.std))
        check_statistics(cfg, checkpoint, encoder.mean, encoder.std)
    with torch.device('meta'):
        model = MODELS.build(cfg.model.backbone)
    with error_context(checkpoint):  # fail before the data sets are read
        match(model, encoder, channels)
    cfg.model.backbone.init_cfg = dict(type='EncoderWeights', checkpoint=str(checkpoint), source=source)
    if channels:
        cfg.model.backbone.init_cfg.channels = channels
    cfg.init_hash = tensors_hash(encoder.state)


def start_weights(cfg: Config) -> tuple[str, str]:
    """Return file and hash of the encoder that a config starts from; empty texts for none."""
    init = cfg.model.get('backbone', {}).get('init_cfg') or {}
    if not isinstance(init, dict) or init.get('type') != 'EncoderWeights':
        return '', ''
    if 'init_hash' not in cfg:  # the config itself names the file
        cfg.init_hash = tensors_hash(read_encoder(init['checkpoint'], init.get('source', 'online')).state)
    return init['checkpoint'], cfg.init_hash


def check_files(cfg: Config) -> None:
    """Raise a FileNotFoundError for a weights file of a config that does not exist; names and addresses pass."""
    files = {'load_from': cfg.get('load_from')}
    for path, group in groups(cfg):
        if path[-1] == 'init_cfg' and group.get('checkpoint'):
            files[f'{".".join(path)}.checkpoint'] = group['checkpoint']
    for key, file in files.items():
        if isinstance(file, str) and file and not ADDRESS.match(file) and not Path(file).expanduser().is_file():
            raise FileNotFoundError(f'{key}={file}: there is no such file (looked for {Path(file).absolute()})')


def preprocessor_of(cfg: Config) -> dict:
    """Return the data preprocessor of a config: that of the model, or else the shared one."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor


def input_statistics(cfg: Config) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation (of 0..255) that a config normalizes images with."""
    preprocessor = preprocessor_of(cfg)
    return list(preprocessor.mean), list(preprocessor.std)


def same_statistics(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> bool:
    """Whether two pairs of mean and standard deviation are equal, also in their number of channels."""
    return len(ours[0]) == len(theirs[0]) and np.allclose(ours, theirs, atol=0.01)


def check_statistics(cfg: Config, checkpoint: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise a ValueError for weights trained with other input statistics; ``mean=None`` (unknown) passes."""
    ours = input_statistics(cfg)
    if mean is not None and not same_statistics(ours, (mean, std)):
        raise ValueError(
            f'{checkpoint} was made with mean {list(mean)}, std {list(std)}, but the config normalizes '
            f'with mean {ours[0]}, std {ours[1]}: use the config of the method that made the weights '
            '(bootmae_* or mae_*)'
        )


def follow_statistics(model: nn.Module, recorded: dict, path: str, adopt: bool) -> None:
    """Normalize images as the run of a checkpoint did, or refuse the checkpoint.

    Args:
        model: model with a ``data_preprocessor``, which is changed.
        recorded: metadata of the file, with ``mean`` and ``std`` of 0..255 if they are known.
        path: path of the file, for messages.
        adopt: use the statistics of the file; otherwise they must equal those of the model.

    Raises:
        ValueError: if the statistics differ and ``adopt`` is off.
    """
    preprocessor = model.data_preprocessor
    if 'mean' not in recorded or getattr(preprocessor, 'mean', None) is None:
        return
    theirs = recorded['mean'], recorded['std']
    ours = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
    if same_statistics(ours, theirs):
        return
    if not adopt or len(ours[0]) != len(theirs[0]):
        raise ValueError(
            f'{path} was trained on images normalized with mean {theirs[0]}, std {theirs[1]}, but the '
            f'config has mean {ours[0]}, std {ours[1]}: use the config that wrote the file'
        )
    for name, values in zip(('mean', 'std'), theirs):
        buffer = getattr(preprocessor, name)
        buffer.copy_(torch.tensor(values).view_as(buffer))
    print_log(f'images are normalized with mean {theirs[0]}, std {theirs[1]}, as for {path}', logger='current')
