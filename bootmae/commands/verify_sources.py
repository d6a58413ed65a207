"""Data sets that ``tools/verify_data.py`` scans: those of a config, a folder, a tar or a list of images."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, METRICS

from .. import registry  # noqa: F401
from ..config.checks import check_metric, metric_configs
from ..data.annotated import annotated_files, explain_empty, judge_labels, kind_of
from ..data.channels import format_of
from ..data.file_checks import Job
from ..data.findings import EVALUATOR_FILE, FILES_UNUSED, MISSING_IMAGE, NOT_FILES, DataFault, FileFinding
from ..data.lists import folder_of_list, not_utf8, read_list
from ..data.roots import ARCHIVE
from ..data.scan import (
    EXTENSIONS,
    SPLIT_NAMES,
    Survey,
    class_folders,
    classes_of_train,
    first_level,
    scan_classes,
    scan_folders,
    suffix,
    unused,
)
from ..data.scan_tar import scan_tar, scan_tar_classes
from ..data.subsets import leaves
from ..data.tar import readable, split_tar_path
from ..text import count_of


@dataclass
class Source:
    """A data set to scan.

    Args:
        split: train, val, test, or another name.
        title: description of the data set for the report.
        jobs: files to read.
        findings: problems found in the annotations.
        summarize: maps the number of pixels of each label in the masks, and a mask with each label, to findings.
    """

    split: str
    title: str
    jobs: list[Job]
    findings: list[FileFinding] = field(default_factory=list)
    summarize: Callable[[Counter, dict[int, str]], list[FileFinding]] | None = None


def sources_of_config(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test')) -> list[Source]:
    """Build the data sets of a config's loaders. A data set that two loaders share is scanned once.

    Raises:
        ValueError: if the loaders have no data set. Errors raised while a data set is built are passed on, except for
            faults of annotations, which become findings.
    """
    sources, seen = [], []
    for split in splits:
        dataset_cfg = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if not dataset_cfg or dataset_cfg in seen:
            continue
        seen.append(dataset_cfg)
        evaluators = metric_configs(cfg, split)
        with_masks = any('segm' in (evaluator.get('metric') or ()) for evaluator in evaluators)
        try:
            dataset = build_dataset(dataset_cfg)
            sources += [source_of_dataset(leaf, split, with_masks) for leaf in leaves(dataset)]
            sources[-1].findings.extend(_findings_of_evaluators(evaluators, dataset))
        except DataFault:
            sources += [_source_of_leaf(leaf, split, with_masks) for leaf in leaves(dataset_cfg)]
    if not sources:
        raise ValueError(f'{cfg.filename} has no data set in {", ".join(f"{split}_dataloader" for split in splits)}')
    return sources


def _findings_of_evaluators(evaluators: Sequence[dict], dataset: BaseDataset) -> list[FileFinding]:
    """What keeps an evaluator from evaluating a data set: its annotation file is wrong, or is that of other images."""
    findings = []
    for evaluator in evaluators:
        if not evaluator.get('ann_file'):
            continue
        try:
            check_metric(METRICS.build(evaluator), dataset)
        except DataFault as fault:
            findings += fault.findings
        except (ValueError, OSError) as error:
            findings.append(FileFinding(EVALUATOR_FILE, evaluator['ann_file'], str(error)))
    return findings


def build_dataset(dataset_cfg: dict) -> BaseDataset:
    """Build a data set; explain the "need at least one array to concatenate" of an empty one."""
    try:
        return DATASETS.build(dataset_cfg)
    except ValueError as error:
        if 'at least one array' not in str(error):
            raise
        raise explain_empty(dataset_cfg) from error


def _source_of_leaf(dataset_cfg: Config, split: str, with_masks: bool) -> Source:
    """Build a data set that is not inside a wrapper, and list its files even if training refuses it."""
    try:
        return source_of_dataset(build_dataset(dataset_cfg), split, with_masks)
    except DataFault as fault:
        files = count_of(len(fault.paths), 'image') if fault.paths else 'not readable'
        return Source(
            split, f'{split}: {dataset_cfg["type"]}: {files}', [Job(path) for path in fault.paths], fault.findings
        )


def source_of_dataset(dataset: BaseDataset, split: str, with_masks: bool = False) -> Source:
    """List the files to scan of a data set of mmpretrain, mmseg or mmdet."""
    dataset.full_init()
    name, channels = type(dataset).__name__, format_of(dataset)
    if kind := kind_of(dataset):
        jobs, findings = annotated_files(dataset, with_masks)
        jobs = [replace(job, channels=channels) for job in jobs]
        title = f'{split}: {name}: {count_of(len(jobs), "image")} of {dataset.ann_file or jobs[0].image}'
        judge = functools.partial(judge_labels, dataset) if kind == 'masks' else None
        return Source(split, title, jobs, findings, judge)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not infos or 'img_path' not in infos[0]:
        return Source(
            split,
            f'{split}: {name}: not image files, nothing to verify',
            [],
            [FileFinding(NOT_FILES, name, split=split)],
        )
    title = f'{split}: {name}: {count_of(len(infos), "image")}, such as {readable(infos[0]["img_path"])}'
    jobs = [Job(info['img_path'], channels=channels) for info in infos]
    return Source(split, title, jobs, list(getattr(dataset, 'findings', ())))


def sources_of_path(path: str, labels: str = 'auto', root: str | None = None) -> list[Source]:
    """List the images below a folder, in a tar, or in a list file with one path per line.

    Folders named train, val and so on become splits. In a list, a number after the last space of a line is read as a
    label.

    Args:
        path: The folder, tar or list.
        labels: 'folder' checks that the first-level folders, of each split if there are splits, can be classes, as
            ``ImageFiles(labels='folder')`` does; 'none' does not; 'auto' does if they look like classes, see
            :func:`look_like_classes`.
        root: Folder that relative paths of a list start at, by default its folder.

    Raises:
        FileNotFoundError: if the path does not exist, or holds no image.
        ValueError: if the file is no list of images.
    """
    if os.path.isdir(path) or (os.path.isfile(path) and ARCHIVE.search(path)):
        return _sources_of_root(path, labels)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'{path} does not exist: give a config, a folder or a .tar of images, or a list of images'
        )
    if suffix(path) in EXTENSIONS:
        raise ValueError(f'{path} is an image: give its folder, or a list of images')
    return [_source_of_list(path, root or folder_of_list(path))]


def _source_of_list(path: str, root: str) -> Source:
    with open(path, encoding='utf-8-sig', errors='surrogateescape') as lines:
        first = next((line.split() for line in lines if line.strip()), [])
    labeled = len(first) > 1 and first[-1].isdigit()
    try:
        images, _ = read_list(path, root, frozenset(EXTENSIONS), labeled)
    except DataFault as fault:
        return Source('list', f'list: {path}', [], fault.findings)
    odd = {image for image in images if not_utf8(image) and not os.path.isfile(image)}
    findings = [FileFinding(MISSING_IMAGE, image, f'there is no such file{not_utf8(image)}') for image in sorted(odd)]
    title = f'list: {count_of(len(images), "image")} of {path}, relative paths start at {root}'
    return Source('list', title, [Job(image) for image in images if image not in odd], findings)


def look_like_classes(names: Iterable[str]) -> bool:
    """Return whether most images lie in at least two first-level folders; ``names`` are relative to their root."""
    heads = Counter(name.partition('/')[0] if '/' in name else '' for name in names)
    loose = heads.pop('', 0)
    return len(heads) > 1 and heads.total() > loose


def _sources_of_root(path: str, labels: str) -> list[Source]:
    """List the images of a folder or a tar, and check class folders as training does."""
    packed, extensions = os.path.isfile(path), frozenset(EXTENSIONS)
    images, findings = _unlabeled(path, None, extensions)
    names = {image: split_tar_path(image)[1] if packed else os.path.relpath(image, path) for image in images}
    folders = {name.partition('/')[0] for name in names.values() if '/' in name}
    folders |= set() if packed else set(class_folders(path))
    splits = sorted(folder for folder in folders if folder.lower() in SPLIT_NAMES)
    if labels == 'auto':
        below = [
            [name[len(split) + 1 :] for name in names.values() if name.startswith(f'{split}/')] for split in splits
        ]
        labels = 'folder' if any(map(look_like_classes, below or [list(names.values())])) else 'none'
    sources = []
    for split in splits or [None]:
        where = path if split is None else f'{path}!/{split}' if packed else os.path.join(path, split)
        try:
            if labels == 'folder':
                found = _labeled(path, split, extensions)
                images, findings = [*found.paths, *found.loose], found.findings
            elif split is not None:
                images, findings = _unlabeled(path, split, extensions)
        except (FileNotFoundError, ValueError) as error:
            if split is None:
                raise
            images, findings = [], [FileFinding('split without images', where, str(error))]
        name = split.lower() if split else 'images'
        as_classes = ', checked as class folders (--labels none: as plain images)' if labels == 'folder' else ''
        title = f'{name}: {count_of(len(images), "image")} {"in" if packed else "below"} {where}{as_classes}'
        sources.append(Source(name, title, [Job(image) for image in images], findings))
    if splits:
        outside = [image for image, name in names.items() if name.partition('/')[0] not in splits]
        sources += _outside(path, outside, splits)
    return sources


def _unlabeled(path: str, split: str | None, extensions: frozenset[str]) -> tuple[list[str], list[FileFinding]]:
    if os.path.isfile(path):
        part = scan_tar(path, extensions, split)
        return part.paths, unused(part.where, part.others)
    findings: list[FileFinding] = []
    return scan_folders([os.path.join(path, split or '')], extensions, findings=findings), findings


def _labeled(path: str, split: str | None, extensions: frozenset[str]) -> Survey:
    if os.path.isfile(path):
        return scan_tar_classes([path], extensions, None, split)
    root = os.path.join(path, split) if split else path
    return scan_classes(root, extensions, classes_of_train(root, split))


def _outside(path: str, images: list[str], splits: Sequence[str]) -> list[Source]:
    """Return what lies beside the splits of a folder, which runs with a ``split`` do not use."""
    others = first_level(path, frozenset(EXTENSIONS))[2] if os.path.isdir(path) else Counter()
    findings = unused(path, others)
    if images:
        detail = f'{count_of(len(images), "image")} outside {", ".join(splits)}, which `split` leaves out'
        findings.append(FileFinding(FILES_UNUSED, path, detail))
    title = f'images: {count_of(len(images), "image")} of {path} outside the splits'
    return [Source('images', title, [Job(image) for image in images], findings)] if findings else []
