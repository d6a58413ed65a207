"""Chooses how training images are read: by mmpretrain's transforms, one faster transform, or the GPU."""

import torch
from mmengine.config import Config

from ..data.subsets import leaves
from .channels import SETTINGS

READERS = ('stock', 'cpu', 'gpu')
# Arguments that the transforms may have which ReadCrop replaces; None for any value.
LOAD = dict(backend_args=None, color_type='color', imdecode_backend='cv2', to_float32=False, ignore_empty=False)
CROP = dict(
    scale=None,
    crop_ratio_range=None,
    aspect_ratio_range=None,
    max_attempts=None,
    interpolation='bicubic',
    backend='pillow',
)
CHANNELS = dict.fromkeys((*SETTINGS, 'backend_args'))
FLIP = dict(prob=None, direction='horizontal', swap_seg_labels=None)
NO_PIXELS = ('DrawMask', 'PackInputs')  # transforms that do not read the image


def apply_reader(cfg: Config) -> None:
    """Read training images as ``reader`` in the config says. Call it before :func:`apply_run_defaults`.

    - ``cpu`` (default) replaces LoadImageFromFile, RandomResizedCrop or ClampedResizedCrop (bicubic, Pillow) and
      RandomFlip (horizontal, optional) at the beginning of a pipeline by :class:`ReadCrop`, with the same random
      numbers. Other pipelines stay as they are.
    - ``gpu`` does the same, but workers send the bytes of files and :class:`DeviceStage` decodes them on the GPU.
      ``reader_device='cpu'`` decodes on the CPU instead.
    - ``stock`` changes nothing.

    Changes the pipelines of ``train_dataloader``; ``gpu`` also changes its ``collate_fn`` and ``pin_memory``, and sets
    ``device_stage``.

    Raises:
        ValueError: for another reader; for ``gpu`` without a GPU or with a pipeline that it cannot read.
    """
    reader = cfg.get('reader', 'cpu')
    if reader not in READERS:
        raise ValueError(f'reader={reader!r} must be one of {", ".join(map(repr, READERS))}')
    if cfg.get('image_channels') and reader != 'cpu':
        raise ValueError(f'reader={reader} reads 8-bit color images, not image_channels: use reader=cpu')
    if reader == 'stock' or (reader == 'cpu' and cfg.get('default_scope', 'mmpretrain') != 'mmpretrain'):
        return
    pipelines = [leaf for leaf in leaves(cfg.train_dataloader.dataset) if leaf.get('pipeline')]
    if reader == 'cpu':
        for dataset in pipelines:
            dataset['pipeline'] = merge_reading(dataset['pipeline']) or dataset['pipeline']
            if cfg.get('image_channels') and any(step.get('backend') == 'pillow' for step in dataset['pipeline']):
                raise ValueError(
                    'image_channels: RandomResizedCrop or ClampedResizedCrop must follow LoadImageFromFile, with '
                    'interpolation=bicubic and backend=pillow: change the training pipeline'
                )
        return
    device = cfg.get('reader_device', 'cuda')
    if device != 'cpu' and not torch.cuda.is_available():
        raise ValueError('reader=gpu decodes on a CUDA device, and torch sees none here: use reader=cpu')
    if not pipelines:
        raise ValueError('reader=gpu: the training data set has no pipeline that reads files: use reader=cpu')
    for dataset in pipelines:
        dataset['pipeline'] = for_gpu(dataset['pipeline'])
    cfg.device_stage = dict(size=one_size([dataset['pipeline'][0]['crop']['scale'] for dataset in pipelines]))
    if device != 'cuda':
        cfg.device_stage.device = device
    cfg.train_dataloader.collate_fn = dict(type='collate_encoded')  # the GPU decoder reads unpinned memory
    cfg.train_dataloader.pin_memory = False


def merge_reading(pipeline: list[dict], mode: str = 'cpu') -> list[dict] | None:
    """Return the pipeline with ReadCrop at its beginning, or None if it begins otherwise."""
    if len(pipeline) < 2:
        return None
    channels = arguments_of(pipeline[0], 'LoadChannels', CHANNELS)
    load, crop = (
        arguments_of(pipeline[0], 'LoadImageFromFile', LOAD) if channels is None else channels,
        arguments_of(pipeline[1], 'RandomResizedCrop', CROP),
    )
    clamped = crop is None
    if clamped:
        crop = arguments_of(pipeline[1], 'ClampedResizedCrop', CROP)
    # Their default, bilinear by OpenCV, differs.
    if load is None or crop is None or {'scale', 'interpolation', 'backend'} - crop.keys():
        return None
    flip = arguments_of(pipeline[2], 'RandomFlip', FLIP) if len(pipeline) > 2 else None
    rest = pipeline[2 if flip is None else 3 :]
    step = dict(type='ReadCrop', crop=crop, flip=flip, mode=mode) | (dict(clamped=True) if clamped else {})
    if load.get('backend_args') is not None:
        step['backend_args'] = load['backend_args']
    if channels is not None:
        step['channels'] = {key: value for key, value in channels.items() if key != 'backend_args'}
    if not steps_with_pixels(rest):
        step['planes'] = True
    return [step, *rest]


def arguments_of(step: dict, name: str, allowed: dict) -> dict | None:
    """Return the arguments of a transform, or None if it is another one or has arguments that are not allowed."""
    # Configs that inherit from mmpretrain name its scope in each transform.
    arguments = {
        key: value for key, value in step.items() if key != 'type' and (key, value) != ('_scope_', 'mmpretrain')
    }
    fits = str(step['type']).rpartition('.')[2] == name and all(
        key in allowed and (allowed[key] is None or value == allowed[key]) for key, value in arguments.items()
    )
    return arguments if fits else None


def steps_with_pixels(steps: list[dict]) -> list[str]:
    """Return the names of the transforms that may read the image."""
    names = [str(step['type']).rpartition('.')[2] for step in steps]
    return [name for name in names if name not in NO_PIXELS]


def for_gpu(pipeline: list[dict]) -> list[dict]:
    """Return the pipeline for ``reader=gpu``, which gives file bytes and crop boxes to :class:`DeviceStage`.

    Raises:
        ValueError: if ReadCrop cannot replace its beginning, or if a later transform needs the image.
    """
    merged = merge_reading(pipeline, 'gpu')
    names = [str(step['type']).rpartition('.')[2] for step in pipeline]
    if merged is None:
        raise ValueError(
            'reader=gpu replaces LoadImageFromFile, RandomResizedCrop or ClampedResizedCrop '
            '(interpolation=bicubic, backend=pillow) and RandomFlip (horizontal), but the training '
            f'pipeline begins with {", ".join(names[:3])} or has other arguments: use reader=cpu'
        )
    needy = steps_with_pixels(merged[1:])
    if needy:
        raise ValueError(
            f'reader=gpu does not work with {", ".join(needy)} in the training pipeline, because they read the '
            'image in the worker: use reader=cpu'
        )
    if names[-1] != 'PackInputs':
        raise ValueError(f'reader=gpu needs PackInputs as the last transform, not {names[-1]}: use reader=cpu')
    keys = list(merged[-1].get('algorithm_keys', ()))
    return [*merged[:-1], dict(merged[-1], algorithm_keys=[*keys, 'crop_box'])]


def one_size(scales: list) -> int | tuple[int, int]:
    """Return the common size of the crops of all pipelines.

    Raises:
        ValueError: if they differ.
    """
    sizes = {(scale, scale) if isinstance(scale, int) else tuple(scale) for scale in scales}
    if len(sizes) > 1:
        raise ValueError(
            f'reader=gpu makes crops of one size, but the training data sets have {sorted(sizes)}: give '
            'them the same scale, or use reader=cpu'
        )
    height, width = sizes.pop()
    return height if height == width else (height, width)
