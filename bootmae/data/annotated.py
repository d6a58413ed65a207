"""Checks of the data sets of mmseg and mmdet, shared by training, evaluation and ``tools/verify_data.py``."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.fileio import get_local_path
from mmengine.registry import DATASETS

from ..text import count_of
from .coco import CocoFile, read_coco
from .coco_checks import FAULTS_OF_CONTENT, check_coco
from .coco_checks import FAULTS_OF_MASKS as FAULTS_OF_INSTANCES
from .file_checks import IGNORED, Job, missing_mask
from .findings import (
    CLASS_ABSENT,
    FAULTS_OF_MASKS,
    IMAGE_UNUSED,
    MASK_SIZE,
    MISSING_MASK,
    ORIENTED,
    OTHER_SIZE,
    DataFault,
    FileFinding,
)
from .scan import EXTENSIONS, scan_folders
from .subsets import leaves

TOO_FEW, MOST_IGNORED, ZERO_LABEL, OTHER_SUFFIX = FAULTS_OF_SETS = (
    'fewer than two classes',
    'most of the foreground is ignored',
    'reduce_zero_label does not fit',
    'image with another suffix',
)
REFUSED = frozenset(  # no run starts with one of these
    (*FAULTS_OF_CONTENT, *FAULTS_OF_INSTANCES, *FAULTS_OF_MASKS, *FAULTS_OF_SETS, ORIENTED, OTHER_SIZE, MASK_SIZE)
)


def kind_of(dataset: Any) -> str | None:
    """Return what a data set is annotated with: 'masks' (mmseg), 'instances' (COCO files of mmdet), or None."""
    if hasattr(dataset, 'reduce_zero_label'):
        return 'masks'
    return 'instances' if hasattr(dataset, 'cat_ids') and hasattr(dataset, 'COCOAPI') else None


def annotated_files(dataset: Any, with_masks: bool = False) -> tuple[list[Job], list[FileFinding]]:
    """List the files of a data set of mmseg or mmdet, and check its annotations without reading the images.

    Args:
        dataset: The data set, built.
        with_masks: Whether the evaluation needs the masks of a COCO file. Its pipeline may need them anyway.
    """
    if kind_of(dataset) == 'masks':
        jobs = _jobs_of_masks(dataset)
        missing = [job for job in jobs if job.mask and not os.path.isfile(job.mask)]
        findings = [FileFinding(MISSING_MASK, job.mask, missing_mask(job)) for job in missing]
        return jobs, [*_other_suffixes(dataset), *findings, *_masks_without_image(dataset, jobs)]
    file, findings = check_instances(dataset, with_masks)
    return _jobs_of_instances(dataset, file), [*findings, *_unused_images(dataset, file)]


def turns_images(dataset: Any) -> bool:
    """Whether the data set turns images on reading as their EXIF orientation says."""
    steps = getattr(dataset.pipeline, 'transforms', ())
    return not any('ignore_orientation' in str(getattr(step, 'color_type', '')) for step in steps)


# --- instances ---


def check_instances(dataset: Any, with_masks: bool = False) -> tuple[CocoFile, list[FileFinding]]:
    """Read and check the annotation file of a COCO data set; see :func:`check_coco`. Works before its initialization.

    Raises:
        DataFault: if the structure of the file is wrong.
    """
    training = not dataset.test_mode
    min_size = (dataset.filter_cfg or {}).get('min_size', 0) if training else 0
    with_masks = with_masks or any(getattr(step, 'with_mask', False) for step in dataset.pipeline.transforms)
    with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as path:
        file = read_coco(path)
    return file, check_coco(file, dataset.metainfo['classes'], with_masks, training, min_size)


def _jobs_of_instances(dataset: Any, file: CocoFile) -> list[Job]:
    folder, turned = dataset.data_prefix['img'], turns_images(dataset)
    jobs = [
        Job(os.path.join(folder, image['file_name']), size=(image['height'], image['width']), turned=turned)
        for image in file.images
    ]
    if dataset._indices is not None:  # the data set uses some of the file's images
        used = {dataset.get_data_info(index)['img_path'] for index in range(len(dataset))}
        jobs = [job for job in jobs if job.image in used]
    return jobs


def _unused_images(dataset: Any, file: CocoFile) -> list[FileFinding]:
    folder = dataset.data_prefix['img']
    listed = {os.path.normpath(os.path.join(folder, image['file_name'])) for image in file.images}
    return [FileFinding(IMAGE_UNUSED, path) for path in _images_below(folder) if os.path.normpath(path) not in listed]


def _images_below(folder: str) -> list[str]:
    """Return the images below a folder; none if it does not exist or holds other files."""
    try:
        return sorted(scan_folders([folder], frozenset(EXTENSIONS))) if os.path.isdir(folder) else []
    except FileNotFoundError:
        return []


def explain_empty(dataset_cfg: dict) -> ValueError:
    """Return the error for a data set without images: what is wrong with its annotations, or else where to look."""
    parts = list(leaves(dataset_cfg))
    for part in parts:
        dataset = DATASETS.build(dict(part, lazy_init=True))
        findings: list[FileFinding] = []
        if hasattr(dataset, 'COCOAPI'):
            findings = check_instances(dataset)[1]
        elif kind_of(dataset) == 'masks':
            findings = list(_other_suffixes(dataset))
        if faults := [finding for finding in findings if finding.kind in REFUSED]:
            return DataFault(faults, with_kind=True)
    part = parts[0]
    return ValueError(
        f'{part["type"]} found no image: check its data_root={part.get("data_root")!r}, '
        f'data_prefix, {"img_suffix" if "ann_file" not in part else "ann_file"} and filter_cfg'
    )


# --- masks ---


def class_of(value: int, zero: bool, label_map: dict[int, int] | None) -> int:
    """Return mmseg's class of a mask value: first apply ``reduce_zero_label`` (``zero``), then the label map."""
    if zero:
        value = IGNORED if value in (0, IGNORED) else value - 1
    return (label_map or {}).get(value, value)


def allowed_labels(dataset: Any) -> frozenset[int]:
    """Return the label values that the masks of an mmseg data set may hold."""
    count = len(dataset.label_map or dataset.metainfo['classes'])
    return frozenset(range(count + bool(dataset.reduce_zero_label))) | {IGNORED}


def _jobs_of_masks(dataset: Any) -> list[Job]:
    allowed, turned = allowed_labels(dataset), turns_images(dataset)
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return [Job(info['img_path'], info.get('seg_map_path'), allowed, turned=turned) for info in infos]


def _other_suffixes(dataset: Any) -> Iterator[FileFinding]:
    """Find images that mmseg leaves out: the suffix differs in upper and lower case, or a mask of their name exists."""
    folder, masks = dataset.data_prefix.get('img_path'), dataset.data_prefix.get('seg_map_path')
    if (dataset.ann_file and not os.path.isdir(dataset.ann_file)) or not folder:
        return
    suffix, mask_suffix = dataset.img_suffix, dataset.seg_map_suffix
    together = masks and Path(masks).resolve().is_relative_to(Path(folder).resolve())
    for path in _images_below(folder):
        name = os.path.basename(path)
        if path.endswith(suffix) or name.startswith('.'):
            continue
        if together and path.lower().endswith(mask_suffix.lower()):
            continue
        mask = masks and os.path.join(masks, os.path.splitext(os.path.relpath(path, folder))[0] + mask_suffix)
        if path.lower().endswith(suffix.lower()) or (mask and os.path.isfile(mask)):
            detail = f'not read, since img_suffix={suffix!r}: give all images one suffix, in upper and lower case too'
            yield FileFinding(OTHER_SUFFIX, path, detail)


def _masks_without_image(dataset: Any, jobs: Sequence[Job]) -> list[FileFinding]:
    folder = dataset.data_prefix.get('seg_map_path')
    if dataset.ann_file or not folder or not os.path.isdir(folder) or dataset._indices is not None:
        return []
    expected = {os.path.normpath(job.mask) for job in jobs if job.mask}
    found = sorted(map(str, Path(folder).rglob(f'*{dataset.seg_map_suffix}')))
    detail = f'no image in {dataset.data_prefix["img_path"]}'
    return [FileFinding('mask without image', path, detail) for path in found if os.path.normpath(path) not in expected]


def judge_labels(dataset: Any, pixels: Counter, first: dict[int, str]) -> list[FileFinding]:
    """Judge the labels of all masks together.

    Args:
        dataset: The data set of mmseg.
        pixels: Number of pixels of each value in the masks.
        first: A mask with each value.
    """
    zero, classes, label_map = bool(dataset.reduce_zero_label), dataset.metainfo['classes'], dataset.label_map
    count = len(label_map or classes)  # classes in the files, of which the data set may use some
    folder = dataset.data_prefix.get('seg_map_path') or type(dataset).__name__
    values = set(pixels) - {IGNORED}
    labels = {class_of(value, zero, label_map) for value in values} - {IGNORED}
    present = [name for label, name in enumerate(classes) if label in labels]
    findings = []
    if zero and values == set(range(count)) and dataset.metainfo.get('unlabeled') != 0:
        detail = (
            f'label 0 counts as unlabeled, but the masks hold 0..{count - 1} and never {count}, like files whose first '
            'class is 0: set reduce_zero_label=False; or, if 0 does mean unlabeled and the last class never occurs, '
            'give the data set metainfo=dict(unlabeled=0)'
        )
        findings.append(FileFinding(ZERO_LABEL, first[0], detail))
    if not zero and count in values and values <= set(range(count + 1)):
        detail = (
            f'label {count} of {count_of(count, "class", "classes")} 0..{count - 1}: its files seem to count classes '
            f'from 1, with 0 for unlabeled: set reduce_zero_label=True; or name all {count + 1} classes'
        )
        findings.append(FileFinding(ZERO_LABEL, first[count], detail))
    advice = (
        f'{IGNORED} is ignored in training and evaluation; if it means a class here, rewrite the masks with the '
        f'numbers 0..{count - 1 + zero}'
    )
    if len(present) < 2 and not findings and set(pixels) <= allowed_labels(dataset):
        held = ', '.join(map(str, sorted(pixels)[:8])) or 'nothing'
        number = count_of(len(classes), 'class', 'classes')
        detail = f'only {present or "none"} of {number} occurs (the masks hold {held}): '
        detail += advice if IGNORED in pixels else 'the result would mean nothing; check the masks and the classes'
        findings.append(FileFinding(TOO_FEW, folder, detail))
    foreground = sum(number for value, number in pixels.items() if value not in (0, IGNORED))
    if pixels[IGNORED] > foreground and len(present) > 1 and not dataset.metainfo.get('sparse_labels'):
        share = pixels[IGNORED] / (foreground + pixels[IGNORED])
        detail = (
            f'{share:.0%} of the pixels that are not 0 hold {IGNORED}: {advice}; if few pixels are labeled on purpose, '
            'give the data set metainfo=dict(sparse_labels=True)'
        )
        findings.append(FileFinding(MOST_IGNORED, folder, detail))
    return findings + [FileFinding(CLASS_ABSENT, folder, name) for name in classes if name not in present]
