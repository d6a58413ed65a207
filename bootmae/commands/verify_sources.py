"""Data sets that ``tools/verify_data.py`` scans: those of a config, a folder, a tar or a list of images."""

import functools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from .. import registry  # noqa: F401
from ..data.annotated import annotated_files, explain_empty, judge_labels, kind_of
from ..data.file_checks import NOT_FILES, DataFaults, FileFinding, Job
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
        evaluators = cfg.get(f'{split}_evaluator') or []
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        with_masks = any('segm' in (evaluator.get('metric') or ()) for evaluator in evaluators)
        try:
            datasets = list(leaves(build_dataset(dataset_cfg)))
            sources += [source_of_dataset(leaf, split, with_masks) for leaf in datasets]
        except DataFaults as error:
            sources.append(Source(split, f'{split}: {dataset_cfg["type"]}: not readable', [], error.findings))
    if not sources:
        raise ValueError(f'{cfg.filename} has no data set in {", ".join(f"{split}_dataloader" for split in splits)}')
    return sources


def build_dataset(dataset_cfg: dict) -> BaseDataset:
    """Build a data set; explain the "need at least one array to concatenate" of an empty one."""
    try:
        return DATASETS.build(dataset_cfg)
    except ValueError as error:
        if 'at least one array' not in str(error):
            raise
        raise explain_empty(dataset_cfg) from error


def source_of_dataset(dataset: BaseDataset, split: str, with_masks: bool = False) -> Source:
    """List the files to scan of a data set of mmpretrain, mmseg or mmdet."""
    dataset.full_init()
    name = type(dataset).__name__
    if kind := kind_of(dataset):
        jobs, findings = annotated_files(dataset, with_masks)
        title = f'{split}: {name}: {len(jobs):,} images of {dataset.ann_file or jobs[0].image}'
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
    title = f'{split}: {name}: {len(infos):,} images, such as {readable(infos[0]["img_path"])}'
    return Source(split, title, [Job(info['img_path']) for info in infos])


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
