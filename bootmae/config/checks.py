"""Checks before the first step: anything that would make a result silently wrong is an error."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import to_2tuple
from mmpretrain.registry import DATASETS
from PIL import Image
from torch import nn

from ..data.subsets import leaves, spread

NUM_MASKS = 200  # maximum number of masks to read of a data set, evenly spaced
IGNORED = 255
HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'mask_head', 'roi_head')


def _whole_patches(what: str, size: int | Sequence[int], patch: tuple[int, int]) -> None:
    """Raise a ValueError unless a size in pixels, (height, width) or one number, is a multiple of the patch."""
    if any(n % p for n, p in zip(to_2tuple(size), patch)):
        better = tuple(max(round(n / p), 1) * p for n, p in zip(to_2tuple(size), patch))
        raise ValueError(f"{what}={size} is not a multiple of the backbone's patch, {patch} pixels: use e.g. {better}")


def check_sizes(cfg: Config) -> None:
    """Check that crops and padding of a segmentation or detection config are multiples of the patch. Changes nothing.

    Raises:
        ValueError: if they are not, or if nothing pads images of other sizes.
    """
    backbone = cfg.model.get('backbone', {})
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if backbone.get('type') != 'TransferViT' or backbone.get('pad'):
        return
    patch = to_2tuple(backbone.get('patch_size', 16))
    if preprocessor.get('type') == 'SegDataPreProcessor':
        for step in cfg.train_dataloader.dataset.get('pipeline', ()):
            if step['type'] == 'RandomCrop':
                _whole_patches('RandomCrop crop_size', step['crop_size'], patch)
        for where, options in (('', preprocessor), ('test_cfg.', preprocessor.get('test_cfg') or {})):
            given = [name for name in ('size', 'size_divisor') if options.get(name)]
            for name in given:
                _whole_patches(f'data_preprocessor.{where}{name}', options[name], patch)
            if not given:
                raise ValueError(
                    f'data_preprocessor.{where}size_divisor is not set, so an image whose size is not a '
                    f'multiple of the patch, {patch} pixels, would stop the run: set data_preprocessor.{where}'
                    f'size_divisor={patch[0]} (or size), or pad=True in the backbone'
                )
        if cfg.model.get('test_cfg', {}).get('mode') == 'slide':
            _whole_patches('test_cfg.crop_size', cfg.model.test_cfg.crop_size, patch)
    if preprocessor.get('type') == 'DetDataPreprocessor':
        _whole_patches('data_preprocessor.pad_size_divisor', preprocessor.get('pad_size_divisor', 1), patch)


def check_schedule(cfg: Config) -> None:
    """Check that the run is longer than its warm-up. Call it before accumulation changes numbers of iterations.

    Raises:
        ValueError: for a ``WarmupCosineLR`` whose warm-up is not shorter than the run. Other schedules get a warning.
    """
    length = next((name for name in ('max_epochs', 'max_iters') if cfg.train_cfg.get(name)), None)
    schedules = cfg.get('param_scheduler') or []
    for index, schedule in enumerate(schedules if isinstance(schedules, list) else [schedules]):
        by_epoch = schedule.get('by_epoch', True)
        if length is None or by_epoch != (length == 'max_epochs'):
            continue
        ours, key = (
            cfg.train_cfg[length],
            f'param_scheduler.{index}' if isinstance(schedules, list) else 'param_scheduler',
        )
        unit = 'epochs' if by_epoch else 'iterations'
        if schedule['type'] == 'WarmupCosineLR' and schedule.get('warmup', 0) >= schedule.get('end', ours):
            raise ValueError(
                f'{key}.warmup={schedule.warmup} {unit}, but the schedule has {schedule.get("end", ours)} '
                f'(train_cfg.{length}={ours}): give --cfg-options {key}.warmup=N below that, or train longer'
            )
        if schedule['type'] == 'LinearLR' and schedule.get('start_factor', 1 / 3) < 1 and schedule.get('end', 0) > ours:
            print_log(
                f'{key} warms up for {schedule.end} {unit}, but train_cfg.{length}={ours}: this run never reaches its '
                f'learning rate; give --cfg-options {key}.end=N for a shorter warm-up',
                logger='current',
                level=logging.WARNING,
            )


def head_classes(model: nn.Module) -> dict[str, int]:
    """Return the number of classes of each head of a segmentor or detector by name; empty for other models."""
    return {
        name: module.num_classes
        for name, module in model.named_modules()
        if name.startswith(HEADS) and isinstance(getattr(module, 'num_classes', None), int)
    }


def check_dataset(dataset, model: nn.Module) -> None:
    """Check the labels of a data set of mmseg or mmdet against the model; other data sets pass.

    Raises:
        ValueError: for a head with another number of classes, labels out of range, a wrong ``reduce_zero_label``, or
            classes that the annotations do not have. The message names a file and the remedy.
        FileNotFoundError: for an image without a mask.
    """
    heads = head_classes(model)
    for leaf in leaves(dataset):
        kind = 'masks' if hasattr(leaf, 'reduce_zero_label') else 'instances' if hasattr(leaf, 'cat_ids') else None
        if not heads or kind is None:
            continue
        classes = leaf.metainfo['classes']
        if other := {name: number for name, number in heads.items() if number != len(classes)}:
            raise ValueError(
                f'{type(leaf).__name__} has {len(classes)} classes, but num_classes is '
                f'{", ".join(f"{number} in {name}" for name, number in other.items())}: set '
                f'num_classes={len(classes)} in every head'
            )
        (check_masks if kind == 'masks' else check_instances)(leaf, classes)


def _label_values(path: str) -> np.ndarray:
    """Return the values that occur in a mask file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'no mask {path}: every image needs a mask of the same name')
    with Image.open(path) as file:
        mask = np.asarray(file)
    if mask.ndim != 2:
        raise ValueError(
            f'{path} has {mask.shape[-1]} channels: a mask needs one class number per pixel (gray or palette PNG)'
        )
    return np.unique(mask)


def read_labels(dataset) -> tuple[dict[int, str], int]:
    """Read at most ``NUM_MASKS`` masks of an mmseg data set.

    Returns:
        The first file with each value, and the number of masks that were read.
    """
    chosen, seen = spread(len(dataset), NUM_MASKS), {}
    for index in chosen:
        path = dataset.get_data_info(int(index))['seg_map_path']
        for value in _label_values(path):
            seen.setdefault(int(value), path)
    return seen, len(chosen)


def class_of(value: int, zero: bool, label_map: dict[int, int] | None) -> int:
    """Return mmseg's class of a mask value: first apply ``reduce_zero_label`` (``zero``), then the label map."""
    if zero:
        value = IGNORED if value in (0, IGNORED) else value - 1
    return (label_map or {}).get(value, value)


def check_masks(dataset, classes: Sequence[str]) -> None:
    """Check the class numbers in mmseg masks, see :func:`check_dataset`."""
    zero, label_map = bool(dataset.reduce_zero_label), dataset.label_map
    count = len(label_map or classes)  # classes in the files, of which the data set may use some
    seen, masks = read_labels(dataset)
    labels = {class_of(value, zero, label_map) for value in seen} - {IGNORED}
    wrong = sorted(set(seen) - set(range(count + zero)) - {IGNORED})
    if wrong:
        remedy = (
            'its files seem to count classes from 1, with 0 for unlabeled: set reduce_zero_label=True'
            if not zero and wrong == [count]
            else "set the data set's classes, or convert its files"
        )
        raise ValueError(
            f'{seen[wrong[0]]} has the label {wrong[0]}, outside 0..{count + zero - 1} of '
            f'{type(dataset).__name__} with {count} classes and reduce_zero_label={zero}: {remedy}'
        )
    if zero and set(seen) - {IGNORED} == set(range(count)) and dataset.metainfo.get('unlabeled') != 0:
        raise ValueError(
            f'with reduce_zero_label=True label 0 counts as unlabeled, but the masks ({seen[0]}, ...) '
            f'hold 0..{count - 1} and never {count}, like files whose first class is 0: set '
            'reduce_zero_label=False; or, if 0 does mean unlabeled and the last class never '
            'occurs, give the data set metainfo=dict(unlabeled=0)'
        )
    _tell_absent(
        dataset,
        [name for label, name in enumerate(classes) if label not in labels],
        'masks' if masks == len(dataset) else f'{masks} masks that were read',
    )


def check_instances(dataset, classes: Sequence[str]) -> None:
    """Check that the annotations have every class of an mmdet data set; mmdet drops unknown classes silently."""
    if len(dataset.cat_ids) != len(classes):
        known = [category['name'] for category in dataset.COCOAPI(dataset.ann_file).dataset['categories']]
        absent = [name for name in classes if name not in known]
        raise ValueError(
            f'{dataset.ann_file} has no categories {absent[:5]}: it has {known[:10]}'
            f'{" ..." if len(known) > 10 else ""}. Give the data set metainfo=dict(classes=...) with the '
            'names of the file'
        )
    found = {label for index in range(len(dataset)) for label in _labels_of(dataset, index)}
    _tell_absent(dataset, [name for label, name in enumerate(classes) if label not in found], 'annotations')


def _labels_of(dataset, index: int) -> list[int]:
    return [instance['bbox_label'] for instance in dataset.get_data_info(index)['instances']]


def check_metric(metric, dataset) -> None:
    """Raise a ValueError if the COCO metric would count images outside the data set as missed."""
    truth = getattr(metric, '_coco_api', None)
    if truth is None or getattr(metric, 'takes_parts', False):
        return
    asked, given = (
        set(truth.get_img_ids()),
        {leaf.get_data_info(index)['img_id'] for leaf in leaves(dataset) for index in range(len(leaf))},
    )
    if asked != given:
        raise ValueError(
            f"the evaluator's ann_file has {len(asked)} images and the data set {len(given)}, "
            f'{len(asked & given)} of them in common: images without predictions would count as missed. Give '
            "both the same ann_file without indices, or use type='SubsetCocoMetric' in the evaluator"
        )


def _tell_absent(dataset, absent: list[str], where: str) -> None:
    if absent:
        names = ', '.join(absent[:8]) + (', ...' if len(absent) > 8 else '')
        print_log(
            f'{type(dataset).__name__}: {len(absent)} of its classes do not occur in its {where}: {names}',
            logger='current',
        )


def check_data(dataset: dict) -> None:
    """Check the image folders of a data set config, without listing images.

    Raises:
        FileNotFoundError: if a folder does not exist, see :class:`ImageFiles`.
        ValueError: for wrong arguments of :class:`ImageFiles`.
    """
    for leaf in leaves(dataset):
        if leaf.get('type') == 'ImageFiles':
            DATASETS.build(dict(leaf, pipeline=[], lazy_init=True))


def check_model(cfg: Config) -> None:
    """Raise a ValueError for a BootMAE without ``BootMAEHook``: its momentum encoder would never be updated."""
    hooks = [hook['type'] for hook in cfg.get('custom_hooks', [])]
    if cfg.model.type == 'BootMAE' and 'BootMAEHook' not in hooks:
        raise ValueError(
            "model BootMAE needs custom_hooks=[dict(type='BootMAEHook')]: without it the momentum encoder never moves"
        )
