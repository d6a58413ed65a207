"""Images of other kinds than 8-bit color for any config: the setting ``image_channels``."""

import logging
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoints import error_context
from ..checkpoints.identify import recorded_facts
from ..data.channels import ADVICE, ENDING, ChannelFormat
from ..data.scan import EXTENSIONS
from ..data.subsets import leaves
from ..text import count_of

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
READING = ('LoadImageFromFile', 'LoadChannels')
# Transforms that change colors or compute with 8 bits.
OF_COLORS = (
    *('AdjustGamma', 'AutoAugment', 'CLAHE', 'ColorJitter', 'GaussianBlur', 'Lighting', 'PhotoMetricDistortion'),
    *('RandAugment', 'RandomGrayscale'),
)
SETTINGS = ('number', 'axis', 'select', 'ranges', 'percentiles')  # those of ChannelFormat
RECORDED = 'image_channels'  # key of a run's facts, see channels_record


def apply_channels(cfg: Config) -> None:
    """Read and model images as the setting ``image_channels`` says; without it nothing changes.

    ``image_channels`` has the arguments of :class:`ChannelFormat`, and ``mean`` and ``std`` of the used channels after
    scaling to 0..255. In all loaders LoadChannels replaces LoadImageFromFile, transforms of colors are left out with a
    line in the log, and ImageFiles finds ``.npy`` files too. The model gets the number of channels, and the data
    preprocessor mean and standard deviation.

    Args:
        cfg: Changed in place.

    Raises:
        ValueError: If the settings do not fit, or the config reads no image files or is one of mmdet.
    """
    if not cfg.get('image_channels'):
        return
    if cfg.get('default_scope') == 'mmdet':
        raise ValueError(f'image_channels: {cfg.filename} is a detection config, which reads 8-bit color images only')
    settings, channels = cfg.image_channels, format_of_config(cfg)
    load = dict(type='LoadChannels', **{key: settings[key] for key in SETTINGS if settings.get(key) is not None})
    left_out: list[str] = []
    for dataset in _data_sets(cfg):
        if not any(_name(step) in (*READING, 'ReadCrop') for step in dataset['pipeline']):
            raise ValueError(
                f'image_channels: the pipeline of {dataset["type"]} in {cfg.filename} reads no image files '
                '(LoadImageFromFile): use a config for your own images, such as bootmae_small_data'
            )
        left_out += [_name(step) for step in dataset['pipeline'] if _name(step) in OF_COLORS]
        dataset['pipeline'] = [_replaced(step, load) for step in dataset['pipeline'] if _name(step) not in OF_COLORS]
        if dataset['type'] == 'ImageFiles':
            dataset.setdefault('extensions', [*EXTENSIONS, ENDING])
    if cfg.get('tta_pipeline'):
        cfg.tta_pipeline = [_replaced(step, load) for step in cfg.tta_pipeline]
    _set_statistics(cfg, channels.count)
    _set_model(cfg.model, channels.count)
    if left_out:
        print_log(
            f'image_channels: {", ".join(dict.fromkeys(left_out))} left out, made for 8-bit color images',
            logger='current',
        )


def format_of_config(cfg: Config) -> ChannelFormat | None:
    """Return the format that the setting ``image_channels`` of a config describes; None without it."""
    settings = cfg.get('image_channels')
    if not settings:
        return None
    if settings.get('number') is None:
        raise ValueError('image_channels.number is missing: give the number of channels in a file')
    return ChannelFormat(**{key: value for key, value in settings.items() if key in SETTINGS})


def channels_record(cfg: Config) -> dict:
    """Return what each input channel of a config's model is, for its checkpoints; empty for 8-bit color images.

    The place of a channel in its file and the values that become 0 and 255 show neither in the shape of the weights
    nor in mean and standard deviation.
    """
    channels = format_of_config(cfg)
    return {} if channels is None else {RECORDED: _facts(channels)}


def _facts(channels: ChannelFormat) -> dict:
    return dict(
        select=list(range(channels.number) if channels.select is None else channels.select),
        ranges=as_lists(channels.ranges),
        percentiles=as_lists(channels.percentiles),
    )


def as_lists(value):
    """Replace tuples in nested ones by lists."""
    return list(map(as_lists, value)) if isinstance(value, tuple) else value


def warn_of_channels(cfg: Config, content: dict, path: str) -> None:
    """Warn if the run that wrote a checkpoint used other channels of its files, or scaled them in another way.

    It is no error, because other types of files have other ranges.

    Args:
        cfg: A config.
        content: Content of the checkpoint. A file that does not record its ``image_channels`` passes.
        path: Its path.
    """
    with error_context(path):
        theirs = recorded_facts(content).get(RECORDED) or {}
    ours = _facts(format_of_config(cfg) or ChannelFormat(3))  # 8-bit color
    if other := [f'{key}={theirs[key]} (here {ours[key]})' for key in ours if theirs.get(key, ours[key]) != ours[key]]:
        print_log(
            f'{path} was trained with other image_channels: {", ".join(other)}. Check that each channel means the same '
            'and has the same scale',
            logger='current',
            level=logging.WARNING,
        )


def preprocessor_of(cfg: Config) -> dict:
    """Return the data preprocessor of a config: that of the model, or else the shared one."""
    return cfg.model.get('data_preprocessor') or cfg.data_preprocessor


def _data_sets(cfg: Config) -> Iterator[dict]:
    for loader in LOADERS:
        for dataset in leaves((cfg.get(loader) or {}).get('dataset') or {}):
            if dataset.get('pipeline') is not None:
                yield dataset


def _name(step: dict) -> str:
    return str(step['type']).rpartition('.')[2]


def _replaced(step: dict, load: dict) -> dict:
    """Return the transform that does the work of another one on images of channels."""
    if _name(step) in READING:
        return load | ({'backend_args': step['backend_args']} if step.get('backend_args') else {})
    if step.get('backend') != 'pillow' or _name(step) in ('RandomResizedCrop', 'ClampedResizedCrop'):
        return step  # the latter become a part of ReadCrop
    if _name(step) == 'ResizeEdge' and step.get('interpolation') == 'bicubic':
        return dict(step, type='ResizeEdgeOfFloats')
    raise ValueError(
        f"image_channels: {_name(step)} with backend='pillow' resizes 8-bit images: use ResizeEdge with "
        "interpolation='bicubic', or backend='cv2'"
    )


def _set_statistics(cfg: Config, count: int) -> None:
    preprocessor = preprocessor_of(cfg)
    for name in ('mean', 'std'):
        given, now = cfg.image_channels.get(name), list(preprocessor.get(name) or ())
        if given is None and len(set(now)) != 1 and len(now) != count:
            raise ValueError(
                f'image_channels.{name} is missing, and the config has {now} for colors: give {count} values of 0..255 '
                f'({ADVICE})'
            )
        values = (now[:1] * count if len(set(now)) == 1 else now) if given is None else list(given)
        if len(values) != count:
            raise ValueError(
                f'image_channels.{name} has {count_of(len(values), "value")} for '
                f'{count_of(count, "used channel")}: give one for each'
            )
        preprocessor[name] = [float(value) for value in values]
    for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'):  # channels are read in the order of the file
        if preprocessor.get(name):
            preprocessor[name] = False


def _set_model(model: dict, count: int) -> None:
    backbone = model['backbone']
    if backbone['type'].endswith('MAEViT'):  # mmpretrain's
        backbone['patch_cfg'] = dict(backbone.get('patch_cfg') or {}, in_channels=count)
        model['neck']['in_chans'] = model['head']['in_channels'] = count
    else:
        backbone['in_channels'] = count
