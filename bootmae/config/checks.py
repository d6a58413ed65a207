"""Checks before the first step: anything that would make a result silently wrong is an error."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import to_2tuple
from mmpretrain.registry import DATASETS
from torch import nn

from ..data.annotated import REFUSED, TOO_FEW, annotated_files, judge_labels, kind_of
from ..data.coco import read_coco
from ..data.file_checks import Job, inspect_headers, inspect_mask
from ..data.findings import CLASS_ABSENT, DataFault, FileFinding
from ..data.subsets import leaves, spread
from .classes import annotation_path, own_classes

NUM_MASKS = 200  # maximum number of masks to read of a data set, evenly spaced
NUM_HEADERS = 2000  # the same for the size and orientation of images, for which the beginning of a file is enough
ANN_FILE_ADVICE = 'give it a file with annotations, or set format_only=True'
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
        warmup, late = schedule.get('warmup', 0), schedule.get('encoder_start', 0)
        if schedule['type'] == 'WarmupCosineLR' and late + warmup >= schedule.get('end', ours):
            first = f'{key}.encoder_start={late} and ' if late else ''
            raise ValueError(
                f'{first}{key}.warmup={warmup} {unit}, but the schedule has {schedule.get("end", ours)} '
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


def check_dataset(dataset, model: nn.Module, metrics: Sequence = ()) -> None:
    """Check the annotations of a data set of mmseg or mmdet against the model; other data sets pass.

    Faults that a run can live with and notes are logged, in the words of ``tools/verify_data.py``.

    Args:
        dataset: The data set, which may be wrapped.
        model: The model.
        metrics: Metrics of the evaluation, which may need the masks of instances.

    Raises:
        ValueError: for a head with another number of classes, or for faults that would make a result wrong. The message
            names a file and the remedy.
    """
    heads = head_classes(model)
    for leaf in leaves(dataset):
        kind = kind_of(leaf)
        if not heads or kind is None:
            continue
        leaf.full_init()
        check_classes(leaf, heads)
        jobs, findings = annotated_files(leaf, any('segm' in getattr(metric, 'metrics', ()) for metric in metrics))
        labels, where = check_labels(leaf, jobs) if kind == 'masks' else ([], 'annotations')
        headers = [inspect_headers(jobs[index]) for index in spread(len(jobs), NUM_HEADERS)]
        findings = [*findings, *labels, *(finding for outcome in headers for finding in outcome.findings)]
        if faults := [finding for finding in findings if finding.kind in REFUSED]:
            raise DataFault(faults, with_kind=True)
        tell(leaf, findings, where)


def check_classes(dataset, heads: dict[str, int]) -> None:
    """Raise a ValueError for class names that are none, and for heads with another number of classes."""
    classes, name = dataset.metainfo['classes'], type(dataset).__name__
    if isinstance(classes, str):
        raise ValueError(
            f'metainfo classes={classes!r} of {name} is one text: give a list of names; a tuple of one name needs a '
            f'comma, ({classes!r},)'
        )
    if len(set(classes)) != len(classes):
        twice = next(one for one in classes if list(classes).count(one) > 1)
        raise ValueError(f'metainfo classes of {name} has {twice!r} twice: the names must differ')
    if other := {head: number for head, number in heads.items() if number != len(classes)}:
        raise ValueError(
            f'{name} has {len(classes)} classes, but num_classes is '
            f'{", ".join(f"{number} in {head}" for head, number in other.items())}: set '
            f'num_classes={len(classes)} in every head'
        )


def check_labels(dataset, jobs: Sequence[Job]) -> tuple[list[FileFinding], str]:
    """Read at most ``NUM_MASKS`` masks of an mmseg data set, or more until two classes are found.

    Returns:
        Findings, those about all masks first, and what was read, in words.
    """
    chosen, pixels, first, findings = spread(len(jobs), NUM_MASKS).tolist(), Counter(), {}, []
    others = iter(sorted(set(range(len(jobs))) - set(chosen)))
    read = 0
    if not any(job.mask for job in jobs):  # a test without annotations
        return [], 'masks'
    while chosen:
        for job in (jobs[index] for index in chosen):
            if not job.mask or not Path(job.mask).is_file():
                continue
            outcome = inspect_mask(job)
            findings += outcome.findings
            pixels.update(outcome.labels)
            first |= {value: job.mask for value in outcome.labels if value not in first}
        read += len(chosen)
        judged = judge_labels(dataset, pixels, first)
        few = any(finding.kind == TOO_FEW for finding in judged)
        chosen = list(islice(others, NUM_MASKS)) if few else []
    return judged + findings, 'masks' if read == len(jobs) else f'{read} masks that were read'


def tell(dataset, findings: Sequence[FileFinding], where: str) -> None:
    """Log findings, one line for each kind."""
    kinds: dict[str, list[FileFinding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    name = type(dataset).__name__
    for kind, group in kinds.items():
        if kind == CLASS_ABSENT:
            names = ', '.join(finding.detail for finding in group[:8]) + (', ...' if len(group) > 8 else '')
            text = f'{name}: {len(group)} of its classes do not occur in its {where}: {names}'
        else:
            first, fault = group[0], group[0].fault
            detail = f': {first.detail}' if first.detail else ''
            more = ' ...' if len(group) > 1 else ''
            text = f'{name}: {"FAULT" if fault else "note"}: {kind}: {len(group):,}: {first.path}{detail}{more}'
        print_log(text, logger='current', level=logging.WARNING if group[0].fault else logging.INFO)


def metric_configs(cfg: Config, loader: str) -> list[dict]:
    """Return the metrics of ``val`` or ``test``, which a config gives as one, as a list, or inside an evaluator."""
    found = cfg.get(f'{loader}_evaluator') or []
    found = found['metrics'] if isinstance(found, dict) and 'metrics' in found else found
    return [found] if isinstance(found, dict) else list(found)


def check_metric(metric, dataset) -> None:
    """Raise a ValueError if the COCO metric has no annotations, other images, or would count images as missed."""
    truth = getattr(metric, '_coco_api', None)
    if truth is None:
        return
    if not truth.anns and not metric.format_only:
        raise ValueError(f"the evaluator's ann_file has no annotations, so nothing can be evaluated: {ANN_FILE_ADVICE}")
    infos = (leaf.get_data_info(index) for leaf in leaves(dataset) for index in range(len(leaf)))
    asked, given = set(truth.get_img_ids()), {info['img_id']: info['img_path'] for info in infos}
    for number in sorted(asked & given.keys()):
        name = truth.imgs[number]['file_name']
        if Path(name).name != Path(given[number]).name:
            raise ValueError(
                f"image {number} is {name} in the evaluator's ann_file and {given[number]} in the data set: give both "
                'the same ann_file'
            )
    if asked != set(given) and not getattr(metric, 'takes_parts', False):
        raise ValueError(
            f"the evaluator's ann_file has {len(asked)} images and the data set {len(given)}, "
            f'{len(asked & given.keys())} of them in common: images without predictions would count as missed. Give '
            "both the same ann_file without indices, or use type='SubsetCocoMetric' in the evaluator"
        )


def check_data(dataset: dict) -> None:
    """Check the image folders of a data set config, without listing images, and the structure of COCO files.

    Raises:
        FileNotFoundError: if a folder or an annotation file does not exist, see :class:`ImageFiles`.
        ValueError: for wrong arguments of :class:`ImageFiles`, or a COCO file of another structure.
    """
    for leaf in leaves(dataset):
        if own_classes(leaf) is not None:
            if str(leaf['type']).split('.')[-1] == 'CocoDataset' and 'img' not in (leaf.get('data_prefix') or {}):
                raise ValueError(f'the data set of {leaf["ann_file"]} needs data_prefix=dict(img=FOLDER of the images)')
            read_coco(annotation_path(leaf))
        if leaf.get('type') == 'ImageFiles':
            DATASETS.build(dict(leaf, pipeline=[], lazy_init=True))


def check_model(cfg: Config) -> None:
    """Raise a ValueError for a BootMAE whose momentum encoder or schedules would never move."""
    if cfg.model.type != 'BootMAE':
        return
    if 'BootMAEHook' not in [hook['type'] for hook in cfg.get('custom_hooks', [])]:
        raise ValueError(
            "model BootMAE needs custom_hooks=[dict(type='BootMAEHook')]: without it the momentum encoder never moves"
        )
    if iterations := (cfg.get('train_cfg') or {}).get('max_iters'):
        raise ValueError(
            f'train_cfg.max_iters={iterations}: BootMAE needs epochs, which its EMA decay and feature weight follow: '
            'train_cfg=dict(by_epoch=True, max_epochs=N)'
        )
