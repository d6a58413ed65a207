"""Start weights: the encoder of a checkpoint, and the input statistics that it was trained with."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from ..checkpoints import error_context, match, read_checkpoint, read_encoder
from ..checkpoints.load import converted, tensors_hash
from ..checkpoints.start import as_plain
from ..checkpoints.statistics import same_statistics
from .channels import preprocessor_of, warn_of_channels
from .schema import groups

ADDRESS = re.compile(r'[a-z0-9+.-]+:', re.IGNORECASE)  # https://..., torchvision://..., timm:NAME


def is_pretraining(cfg: Config) -> bool:
    """Whether a config trains an encoder without labels: ours without a head, or that of mmpretrain's MAE."""
    kind = backbone_type(cfg)
    return (kind == 'PlainViT' and 'head' not in cfg.model) or kind.endswith('MAEViT')


def backbone_type(cfg: Config) -> str:
    """Name of the class of the backbone, without its scope."""
    return str(cfg.model.get('backbone', {}).get('type')).rpartition('.')[2]


def adopts_statistics(cfg: Config) -> bool:
    """Whether images are normalized as the weights need it, and not as the config says.

    The default is yes for a pretraining, whose weights then stay as they are in the file; and no for other tasks, where
    a difference reveals a wrong config. ``convert_statistics=True`` changes the weights instead.

    Raises:
        ValueError: if the config asks for both.
    """
    convert = bool(cfg.get('convert_statistics'))
    if convert and cfg.get('adopt_statistics'):
        raise ValueError(
            'adopt_statistics=True normalizes images as the weights need it, and convert_statistics=True changes the '
            'weights for the normalization of the config: set one of them'
        )
    return bool(cfg.get('adopt_statistics', is_pretraining(cfg) and not convert))


def apply_init(cfg: Config, checkpoint: str, source: str = 'online', content: dict | None = None) -> None:
    """Start the encoder of a config from that of a checkpoint.

    Changes ``init_hash`` and, for a downstream model, ``model.backbone.init_cfg``; for a pretraining ``init``, which
    the runner gives to :func:`start_pretraining`. If the config adopts the input statistics of weights, see
    :func:`adopts_statistics`, also changes the mean and standard deviation of the data preprocessor to those of the
    checkpoint. ``adapt_channels`` in the config takes encoders for another number of channels; other ranges or another
    choice of channels get a warning. ``content`` is that of the file, if it was read before.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the config does not start from an encoder, if the encoder does not fit the backbone or is not
            finite, or if the checkpoint was trained with other input statistics.
    """
    kind, pretraining = backbone_type(cfg), is_pretraining(cfg)
    if kind not in ('TransferViT', 'PlainViT') and not pretraining:
        raise ValueError(
            f'--init needs a backbone PlainViT, TransferViT or MAEViT, but {cfg.model.type} has {kind}: use a config '
            'of configs/pretrain, cls, seg or det'
        )
    content = content or read_checkpoint(checkpoint)
    encoder = read_encoder(checkpoint, source, content)
    warn_of_channels(cfg, content, checkpoint)
    channels = cfg.get('adapt_channels')
    if channels not in (None, 'repeat', 'sum'):
        raise ValueError(f'adapt_channels={channels!r} must be repeat, sum or None')
    start: dict = dict(checkpoint=str(checkpoint), source=source)
    if channels:
        start['channels'] = channels
    if encoder.mean is None and cfg.get('convert_statistics'):
        raise ValueError(
            f'convert_statistics=True needs the input statistics of {checkpoint}, and the file does not record them: '
            'set mean and std of the data preprocessor as its training did, and leave the option out'
        )
    if encoder.mean is None or len(encoder.mean) == len(input_statistics(cfg)[0]):
        if adopts_statistics(cfg) and encoder.mean is not None:
            preprocessor_of(cfg).update(mean=list(encoder.mean), std=list(encoder.std))
        if cfg.get('convert_statistics'):
            start['statistics'] = input_statistics(cfg)
        else:
            check_statistics(cfg, checkpoint, encoder.mean, encoder.std)
    with torch.device('meta'):
        model = MODELS.build(cfg.model.backbone)
    with error_context(checkpoint):  # fail before the data sets are read
        match(as_plain(model), converted(encoder, start.get('statistics'))[0], channels, new_norm=pretraining)
    if pretraining:
        cfg.init = start
    else:
        cfg.model.backbone.init_cfg = dict(start, type='EncoderWeights')
    cfg.init_hash = tensors_hash(encoder.state)


def start_weights(cfg: Config) -> tuple[str, str]:
    """Return file and hash of the encoder that a config starts from; empty texts for none."""
    init = cfg.get('init') or cfg.model.get('backbone', {}).get('init_cfg') or {}
    if 'init' not in cfg and (not isinstance(init, dict) or init.get('type') != 'EncoderWeights'):
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


def input_statistics(cfg: Config) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation (of 0..255) that a config normalizes images with."""
    preprocessor = preprocessor_of(cfg)
    return list(preprocessor.mean), list(preprocessor.std)


def check_statistics(cfg: Config, checkpoint: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise a ValueError for weights trained with other input statistics; ``mean=None`` (unknown) passes."""
    ours = input_statistics(cfg)
    if mean is not None and not same_statistics(ours, (mean, std)):
        raise ValueError(
            f'{checkpoint} was made with mean {list(mean)}, std {list(std)}, but the config normalizes '
            f'with mean {ours[0]}, std {ours[1]}: use the config of the method that made the weights '
            '(bootmae_* or mae_*), or set adopt_statistics=True (normalize as the weights need it) or '
            'convert_statistics=True (change the patch embedding)'
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
