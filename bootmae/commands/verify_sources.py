"""Data sets that ``tools/verify_data.py`` scans: those of a config, a folder, a tar or a list of images."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from .. import registry  # noqa: F401
from ..config.checks import IGNORED, class_of
from ..data.file_checks import CLASS_ABSENT, IMAGE_UNUSED, NOT_FILES, FileFinding, Job, check_coco
from ..data.images import read_list
from ..data.scan import EXTENSIONS, SPLIT_NAMES, scan_folders
from ..data.scan_tar import scan_tar
from ..data.subsets import leaves
from ..data.tar import readable


@dataclass
class Source:
    """A data set to scan.

    Args:
        split: train, val, test, or another name.
        title: description of the data set for the report.
        jobs: files to read.
        findings: problems found in the annotations.
        summarize: maps the label values found in the masks, each with the first mask that has it, to findings.
    """

    split: str
    title: str
    jobs: list[Job]
    findings: list[FileFinding] = field(default_factory=list)
    summarize: Callable[[dict[int, str]], list[FileFinding]] | None = None


def sources_of_config(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test')) -> list[Source]:
    """Build the data sets of a config's loaders. A data set that two loaders share is scanned once.

    Raises:
        ValueError: if the loaders have no data set. Errors raised while a data set is built are passed on.
    """
    sources, seen = [], []
    for split in splits:
        dataset_cfg = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if not dataset_cfg or dataset_cfg in seen:
            continue
        seen.append(dataset_cfg)
        sources += [source_of_dataset(leaf, split) for leaf in leaves(DATASETS.build(dataset_cfg))]
    if not sources:
        raise ValueError(f'{cfg.filename} has no data set in {", ".join(f"{split}_dataloader" for split in splits)}')
    return sources


def source_of_dataset(dataset: BaseDataset, split: str) -> Source:
    """List the files to scan of a data set of mmpretrain, mmseg or mmdet."""
    dataset.full_init()
    name = type(dataset).__name__
    if hasattr(dataset, 'cat_ids') and hasattr(dataset, 'COCOAPI'):
        return _source_of_coco(dataset, split)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not infos or 'img_path' not in infos[0]:
        return Source(
            split,
            f'{split}: {name}: not image files, nothing to verify',
            [],
            [FileFinding(NOT_FILES, name, split=split)],
        )
    title = f'{split}: {name}: {len(infos):,} images, such as {readable(infos[0]["img_path"])}'
    if hasattr(dataset, 'reduce_zero_label'):
        return _source_of_masks(dataset, split, title, infos)
    return Source(split, title, [Job(info['img_path']) for info in infos])


def allowed_labels(dataset: BaseDataset) -> frozenset[int]:
    """Return the label values that the masks of an mmseg data set may hold."""
    count = len(dataset.label_map or dataset.metainfo['classes'])
    return frozenset(range(count + bool(dataset.reduce_zero_label))) | {IGNORED}


def _source_of_masks(dataset: BaseDataset, split: str, title: str, infos: list[dict]) -> Source:
    allowed = allowed_labels(dataset)
    jobs = [Job(info['img_path'], info.get('seg_map_path'), allowed) for info in infos]
    findings, folder = [], dataset.data_prefix.get('seg_map_path')
    if not dataset.ann_file and folder and os.path.isdir(folder) and dataset._indices is None:
        expected = {os.path.normpath(job.mask) for job in jobs if job.mask}
        found = sorted(
            path
            for path in map(str, Path(folder).rglob(f'*{dataset.seg_map_suffix}'))
            if os.path.normpath(path) not in expected
        )
        findings = [
            FileFinding('mask without image', path, f'no image in {dataset.data_prefix["img_path"]}') for path in found
        ]
    return Source(split, title, jobs, findings, lambda labels: _judge_labels(dataset, labels))


def _judge_labels(dataset: BaseDataset, labels: dict[int, str]) -> list[FileFinding]:
    """Find classes that no mask has, and a ``reduce_zero_label`` that does not fit the masks."""
    zero, classes = bool(dataset.reduce_zero_label), dataset.metainfo['classes']
    count = len(dataset.label_map or classes)
    present = {class_of(value, zero, dataset.label_map) for value in labels}
    folder = dataset.data_prefix.get('seg_map_path') or type(dataset).__name__
    findings = [FileFinding(CLASS_ABSENT, folder, name) for label, name in enumerate(classes) if label not in present]
    if zero and set(labels) - {IGNORED} == set(range(count)) and dataset.metainfo.get('unlabeled') != 0:
        findings.append(
            FileFinding(
                'reduce_zero_label does not fit',
                labels[0],
                f'label 0 counts as unlabeled, but the '
                f'masks hold 0..{count - 1} and never {count}: set reduce_zero_label=False, or '
                'metainfo=dict(unlabeled=0) if 0 does mean unlabeled',
            )
        )
    if not zero and count in labels and not set(labels) - set(range(count + 1)) - {IGNORED}:
        findings.append(
            FileFinding(
                'reduce_zero_label does not fit',
                labels[count],
                f'the masks hold 0..{count}: if 0 means unlabeled, set reduce_zero_label=True',
            )
        )
    return findings


def _source_of_coco(dataset: BaseDataset, split: str) -> Source:
    file, folder = dataset.ann_file, dataset.data_prefix['img']
    with open(file, encoding='utf-8') as lines:
        content = json.load(lines)
    with_masks = any(getattr(step, 'with_mask', False) for step in dataset.pipeline.transforms)
    jobs = [
        Job(os.path.join(folder, image['file_name']), size=(image['height'], image['width']))
        for image in content['images']
    ]
    findings = check_coco(content, file, dataset.metainfo['classes'], with_masks)
    if dataset._indices is not None:  # the data set uses some of the file's images
        used = {dataset.get_data_info(index)['img_path'] for index in range(len(dataset))}
        jobs = [job for job in jobs if job.image in used]
    listed = {os.path.normpath(os.path.join(folder, image['file_name'])) for image in content['images']}
    present = scan_folders([folder], frozenset(EXTENSIONS)) if os.path.isdir(folder) else []
    findings += [FileFinding(IMAGE_UNUSED, path) for path in present if os.path.normpath(path) not in listed]
    title = (
        f'{split}: {type(dataset).__name__}: {len(jobs):,} images, {len(content["annotations"]):,} annotations '
        f'of {file}'
    )
    return Source(split, title, jobs, findings)


def sources_of_path(path: str) -> list[Source]:
    """List the images below a folder, in a tar, or in a list file with one path per line.

    Folders named train, val and so on become splits. Paths in a list are relative to the list's folder. A number after
    the last space of a line is read as a label.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if a folder has no images, or a list names other files.
    """
    if os.path.isdir(path):
        images = scan_folders([path], frozenset(EXTENSIONS))
    elif os.path.isfile(path) and path.lower().endswith('.tar'):
        images = scan_tar(path, frozenset(EXTENSIONS)).paths
        return [Source('images', f'images: {len(images):,} images in {path}', [Job(image) for image in images])]
    elif os.path.isfile(path):
        with open(path, encoding='utf-8-sig', errors='surrogateescape') as lines:
            first = next((line.split() for line in lines if line.strip()), [])
        labeled = len(first) > 1 and first[-1].isdigit()
        images, _ = read_list(path, os.path.dirname(path), frozenset(EXTENSIONS), labeled)
        return [Source('list', f'list: {len(images):,} images of {path}', [Job(image) for image in images])]
    else:
        raise FileNotFoundError(
            f'{path} does not exist: give a config, a folder or a .tar of images, or a list of images'
        )
    splits = defaultdict(list)
    for image in images:
        head = Path(os.path.relpath(image, path)).parts[0]
        splits[head if head in SPLIT_NAMES else 'images'].append(Job(image))
    return [Source(split, f'{split}: {len(jobs):,} images below {path}', jobs) for split, jobs in splits.items()]
