"""How training images are read: by mmpretrain's transforms, by one faster transform, or by the GPU."""

import torch
from mmengine.config import Config

from ..data.subsets import leaves

READERS = ('stock', 'cpu', 'gpu')
# What the transforms that ReadCrop stands for may be set to; None for any value.
LOAD = dict(backend_args=None, color_type='color', imdecode_backend='cv2', to_float32=False, ignore_empty=False)
CROP = dict(
    scale=None,
    crop_ratio_range=None,
    aspect_ratio_range=None,
    max_attempts=None,
    interpolation='bicubic',
    backend='pillow',
)
FLIP = dict(prob=None, direction='horizontal', swap_seg_labels=None)
NO_PIXELS = ('DrawMask', 'PackInputs')  # steps that do not look at the image


def apply_reader(cfg: Config) -> None:
    """Let training images be read as ``reader`` in the config says; call it before :func:`apply_run_defaults`.

    ``cpu``, the default: a pipeline that begins with LoadImageFromFile, RandomResizedCrop or ClampedResizedCrop
    (bicubic, Pillow) and perhaps RandomFlip (horizontal) gets :class:`ReadCrop` for these, with the same random
    numbers; any other stays as it is.
    ``gpu``: the same, but the images reach the training loop as files' bytes, for :class:`DeviceStage`, whose arguments
    are then in ``cfg.device_stage``. ``stock``: nothing is changed. ``reader_device='cpu'`` lets that stage work
    without a GPU.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: for another reader. For ``gpu``: without a GPU, or for a pipeline that it cannot serve.
    """
    reader = cfg.get('reader', 'cpu')
    if reader not in READERS:
        raise ValueError(f'reader={reader!r} must be one of {", ".join(map(repr, READERS))}')
    if reader == 'stock' or (reader == 'cpu' and cfg.get('default_scope', 'mmpretrain') != 'mmpretrain'):
        return
    pipelines = [leaf for leaf in leaves(cfg.train_dataloader.dataset) if leaf.get('pipeline')]
    if reader == 'cpu':
        for dataset in pipelines:
            dataset['pipeline'] = merge_reading(dataset['pipeline']) or dataset['pipeline']
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
    cfg.train_dataloader.collate_fn = dict(type='collate_encoded')  # the GPU's decoder reads ordinary memory
    cfg.train_dataloader.pin_memory = False


def merge_reading(pipeline: list[dict], mode: str = 'cpu') -> list[dict] | None:
    """A pipeline whose beginning is one ReadCrop; None if it does not begin as that transform does."""
    if len(pipeline) < 2:
        return None
    load, crop = settings(pipeline[0], 'LoadImageFromFile', LOAD), settings(pipeline[1], 'RandomResizedCrop', CROP)
    clamped = crop is None
    if clamped:
        crop = settings(pipeline[1], 'ClampedResizedCrop', CROP)
    # By default both resize otherwise: bilinear, by OpenCV.
    if load is None or crop is None or {'scale', 'interpolation', 'backend'} - crop.keys():
        return None
    flip = settings(pipeline[2], 'RandomFlip', FLIP) if len(pipeline) > 2 else None
    rest = pipeline[2 if flip is None else 3 :]
    step = dict(type='ReadCrop', crop=crop, flip=flip, mode=mode) | (dict(clamped=True) if clamped else {})
    if load.get('backend_args') is not None:
        step['backend_args'] = load['backend_args']
    if not steps_with_pixels(rest):
        step['planes'] = True
    return [step, *rest]


def settings(step: dict, name: str, allowed: dict) -> dict | None:
    """The arguments of a step of a pipeline; None if it is another transform, or set to what is not allowed."""
    # An inherited config of mmpretrain names its scope in each step.
    arguments = {
        key: value for key, value in step.items() if key != 'type' and (key, value) != ('_scope_', 'mmpretrain')
    }
    fits = str(step['type']).rpartition('.')[2] == name and all(
        key in allowed and (allowed[key] is None or value == allowed[key]) for key, value in arguments.items()
    )
    return arguments if fits else None


def steps_with_pixels(steps: list[dict]) -> list[str]:
    """Names of those steps that may look at the image. Packing must be the last."""
    names = [str(step['type']).rpartition('.')[2] for step in steps]
    return [name for name in names if name not in NO_PIXELS]


def for_gpu(pipeline: list[dict]) -> list[dict]:
    """A pipeline that gives the bytes of files and boxes for :class:`DeviceStage`.

    Raises:
        ValueError: if it does not begin as ReadCrop does, or if a later step needs the image.
    """
    merged = merge_reading(pipeline, 'gpu')
    names = [str(step['type']).rpartition('.')[2] for step in pipeline]
    if merged is None:
        raise ValueError(
            'reader=gpu replaces LoadImageFromFile, RandomResizedCrop or ClampedResizedCrop '
            '(interpolation=bicubic, backend=pillow) and RandomFlip (horizontal), but the training '
            f'pipeline begins with {", ".join(names[:3])}, or sets these otherwise: use reader=cpu'
        )
    needy = steps_with_pixels(merged[1:])
    if needy:
        raise ValueError(
            f'reader=gpu cannot serve {", ".join(needy)} of the training pipeline, which need the image '
            'in the worker: use reader=cpu'
        )
    if names[-1] != 'PackInputs':
        raise ValueError(f'reader=gpu needs PackInputs as the last step, not {names[-1]}: use reader=cpu')
    keys = list(merged[-1].get('algorithm_keys', ()))
    return [*merged[:-1], dict(merged[-1], algorithm_keys=[*keys, 'crop_box'])]


def one_size(scales: list) -> int | tuple[int, int]:
    """The size of the crops of all pipelines.

    Raises:
        ValueError: if they differ.
    """
    sizes = {(scale, scale) if isinstance(scale, int) else tuple(scale) for scale in scales}
    if len(sizes) > 1:
        raise ValueError(
            f'reader=gpu makes crops of one size, but the training data sets have {sorted(sizes)}: give '
            'them one scale, or use reader=cpu'
        )
    height, width = sizes.pop()
    return height if height == width else (height, width)
