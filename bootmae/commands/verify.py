"""Scan whole data sets for what is wrong with them: those of a config, a folder, or a list of images."""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import cv2
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.utils import track_iter_progress

from .. import registry  # noqa: F401
from ..config.checks import IGNORED, class_of
from ..config.load import load_config
from ..data.file_checks import (
    CLASS_ABSENT,
    DUPLICATE_WITHIN,
    IMAGE_UNUSED,
    NOT_FILES,
    FileFinding,
    Job,
    Outcome,
    check_coco,
    inspect_files,
)
from ..data.images import read_list
from ..data.scan import EXTENSIONS, SPLIT_NAMES, scan_folders
from ..data.scan_tar import scan_tar
from ..data.subsets import leaves
from ..data.tar import readable

CHUNK = 16  # jobs that a process gets at a time
SHOWN = 10  # findings of one kind on the screen
TRAIN = 'train'


@dataclass
class Source:
    """A data set to scan.

    Args:
        split: train, val, test, or another name.
        title: of the data set, for people.
        jobs: what is to be read.
        findings: what its annotations told.
        summarize: from the label values that occur in its masks, and the first mask with each, to findings.
    """

    split: str
    title: str
    jobs: list[Job]
    findings: list[FileFinding] = field(default_factory=list)
    summarize: Callable[[dict[int, str]], list[FileFinding]] | None = None


@dataclass
class Report:
    """What a scan found.

    Args:
        titles: of the data sets.
        findings: all of them, faults first.
        images, masks: numbers of files read.
        seconds: of the scan.
    """

    titles: list[str]
    findings: list[FileFinding]
    images: int
    masks: int
    seconds: float

    @property
    def faults(self) -> list[FileFinding]:
        return [finding for finding in self.findings if finding.fault]

    def text(self, shown: int | None = None) -> str:
        """All findings, or the first ``shown`` of each kind, and the closing line."""
        groups, lines = defaultdict(list), list(self.titles)
        for finding in self.findings:
            groups[finding.split, finding.kind].append(finding)
        for (split, kind), group in groups.items():
            lines.append(f'\n{"FAULT" if group[0].fault else "note"}: {split}: {kind}: {len(group):,}')
            lines += [
                f'  {finding.path}' + (f': {finding.detail}' if finding.detail else '') for finding in group[:shown]
            ]
            if shown and len(group) > shown:
                lines.append(f'  ... and {len(group) - shown:,} more')
        masks = f' and {self.masks:,} masks' if self.masks else ''
        faults = len(self.faults)
        return '\n'.join(
            lines
            + [
                f'\n{self.images:,} images{masks} in {self.seconds:.1f} s '
                f'({self.images / max(self.seconds, 1e-9):,.0f} images/s): '
                f'{faults:,} faults, {len(self.findings) - faults:,} notes'
            ]
        )

    def write(self, path: str | Path) -> None:
        """All of it to a file, as JSON if its name ends so."""
        content = self.text() + '\n'
        if str(path).endswith('.json'):
            listed = [asdict(finding) | dict(fault=finding.fault) for finding in self.findings]
            content = (
                json.dumps(
                    dict(
                        datasets=self.titles,
                        images=self.images,
                        masks=self.masks,
                        seconds=round(self.seconds, 2),
                        faults=len(self.faults),
                        findings=listed,
                    ),
                    indent=1,
                )
                + '\n'
            )
        Path(path).write_text(content, encoding='utf-8', errors='surrogateescape')


# --- what to scan ---


def sources_of_config(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test')) -> list[Source]:
    """The data sets of a config's loaders; a data set that two loaders share is scanned once.

    Raises what building a data set raises: its errors say what is wrong.
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
    """What there is to scan in a data set of mmpretrain, mmseg or mmdet."""
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
    """Values that may occur in the files of mmseg's data set: of ``guards.check_masks``."""
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
    """What all masks together tell: classes that never occur, and a ``reduce_zero_label`` that does not fit."""
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
    if dataset._indices is not None:  # a part of the file's images
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
    """The images below a folder, of which train, val, ... are splits; those in a tar; or of a list, one path a line.

    Relative paths of a list start at its folder; a number after the last blank is taken for a label.

    Raises:
        FileNotFoundError, ValueError: for a path that does not exist, a folder without images, a list with other files.
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


# --- the scan ---


def _start_worker() -> None:
    cv2.setNumThreads(0)  # the processes share the cores


def _examine_all(jobs: Sequence[Job]) -> list[Outcome]:
    return [inspect_files(job) for job in jobs]


def _pool(workers: int) -> ProcessPoolExecutor:
    method = 'fork' if sys.platform == 'linux' else None  # spawned processes would import the whole stack
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_worker)


def scan(jobs: Iterable[Job], workers: int) -> Iterator[Outcome]:
    """Examine jobs in parallel processes, in any order; with ``workers=0`` in this one.

    A file at which a decoder crashes ends no scan: its process's jobs are repeated one by one.
    """
    if not workers:
        yield from map(inspect_files, jobs)
        return
    jobs, suspects, running = iter(jobs), [], {}
    pool = _pool(workers)
    try:
        while True:
            while len(running) < 4 * workers and (chunk := list(islice(jobs, CHUNK))):
                try:
                    running[pool.submit(_examine_all, chunk)] = chunk
                except BrokenProcessPool:
                    suspects.append(chunk)
                    pool = _pool(workers)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    suspects.append(chunk)
    finally:
        pool.shutdown(cancel_futures=True)
    yield from _scan_singly(job for chunk in suspects for job in chunk)


def _scan_singly(jobs: Iterable[Job]) -> Iterator[Outcome]:
    """Examine jobs one after the other in a process that may crash."""
    pool = None
    for job in jobs:
        pool = pool or _pool(1)
        try:
            yield from pool.submit(_examine_all, [job]).result()
        except BrokenProcessPool:
            yield Outcome(job, [FileFinding('crashes the decoder', job.image)])
            pool = None
    if pool:
        pool.shutdown()


def progress_bar(outcomes: Iterable, total: int) -> Iterable:
    """The same outcomes, with a bar on a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        return track_iter_progress((outcomes, total)) if sys.stderr.isatty() else outcomes
    return tqdm(outcomes, total=total, unit=' images', disable=None, smoothing=0.05)


def verify(
    sources: Sequence[Source], workers: int = 0, progress: Callable = lambda outcomes, total: outcomes
) -> Report:
    """Scan data sets.

    Args:
        sources: the data sets.
        workers: number of processes; 0 reads in this one.
        progress: from (iterable, its length) to an iterable that shows how far it is.
    """
    start = time.perf_counter()
    wanted = {job: None for source in sources for job in source.jobs}  # each once, in order
    outcomes = {outcome.job: outcome for outcome in progress(scan(wanted, workers), len(wanted))}
    findings = []
    for source in sources:
        found, labels = list(source.findings), {}
        for job in source.jobs:
            found += outcomes[job].findings
            for value in outcomes[job].labels:
                labels.setdefault(value, job.mask)
        if source.summarize and labels:
            found += source.summarize(labels)
        findings += [FileFinding(finding.kind, finding.path, finding.detail, source.split) for finding in found]
    findings += duplicates(
        (source.split, [(job.image, outcomes[job].digest) for job in source.jobs]) for source in sources
    )
    findings.sort(key=lambda finding: not finding.fault)
    images = {job.image for job in wanted}
    return Report(
        [source.title for source in sources],
        list(dict.fromkeys(findings)),
        len(images),
        len({job.mask for job in wanted} - {None}),
        time.perf_counter() - start,
    )


def duplicates(splits: Iterable[tuple[str, Iterable[tuple[str, bytes | None]]]]) -> list[FileFinding]:
    """Images that occur twice, byte for byte: in training and another split (a fault), or within a split (a note).

    Args:
        splits: name of the split, and path and hash of each of its images.
    """
    groups = defaultdict(lambda: defaultdict(dict))
    for split, images in splits:
        for path, digest in images:
            if digest is not None:
                groups[digest][split][os.path.realpath(path)] = path
    findings = []
    for group in groups.values():
        for split, paths in group.items():
            first, *others = paths.values()
            findings += [FileFinding(DUPLICATE_WITHIN, other, f'same bytes as {first}', split) for other in others]
            if split != TRAIN and TRAIN in group:
                learnt = next(iter(group[TRAIN].values()))
                findings += [
                    FileFinding(
                        f'in {TRAIN} and {split}',
                        path,
                        'the same file' if os.path.realpath(path) in group[TRAIN] else f'same bytes as {learnt}',
                        f'{TRAIN}, {split}',
                    )
                    for path in paths.values()
                ]
    return findings


def write_list(path: str | Path, folder: str, sources: Sequence[Source], report: Report) -> int:
    """Write the images without a fault as an ``ImageFiles`` list, relative to the folder; returns their number.

    A name that no line of a list can hold (a line break, blanks at its ends) is left out.
    """
    wrong = {finding.path for finding in report.faults if finding.kind[:3] != 'in '}
    good = [os.path.relpath(job.image, folder) for source in sources for job in source.jobs if job.image not in wrong]
    good = [name for name in good if name == name.strip() and len(name.splitlines()) == 1]
    Path(path).write_text(''.join(f'{name}\n' for name in good), encoding='utf-8', errors='surrogateescape')
    return len(good)


def run(args: argparse.Namespace) -> int:
    """What ``tools/verify_data.py`` does: scan, print and write what is found; gives the exit code."""
    folder = os.path.isdir(args.data)
    if args.write_list and not folder:
        raise ValueError(f'--write-list lists the good images of a folder, and {args.data} is none')
    if args.workers < 0:
        raise ValueError(f'--workers {args.workers}: 0, or a number of processes')
    if args.data.endswith('.py') and not folder:
        sources = sources_of_config(load_config(args.data, args.cfg_options), args.split)
    else:
        sources = sources_of_path(args.data)
    report = verify(sources, args.workers, progress_bar)
    print(report.text(SHOWN))
    if args.out:
        report.write(args.out)
    if args.write_list:
        print(f'{write_list(args.write_list, args.data, sources, report):,} good images in {args.write_list}')
    return 1 if report.faults else 0
