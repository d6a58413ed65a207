"""Scan data sets before a run for files that would stop it or spoil its results."""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
from tqdm import tqdm

from ..config.classes import apply_class_names
from ..config.load import load_config, names_config
from ..data.file_checks import Job, Outcome, inspect_files
from ..data.findings import DUPLICATE_WITHIN, NARROW_SET, DataFault, FileFinding
from ..data.roots import ARCHIVE
from ..data.scan import SPLIT_NAMES
from ..data.tar import readable
from ..data.value_checks import judge_ranges
from ..text import count_of, printable
from .outputs import check_writable
from .verify_sources import Source, sources_of_config, sources_of_path

CHUNK = 16  # jobs that a process gets at a time
SHOWN = 10  # findings of each kind that are printed
TRAIN = 'train'


@dataclass
class Report:
    """Result of a scan.

    Args:
        titles: descriptions of the data sets.
        findings: all findings, faults first.
        images: number of image files read.
        masks: number of mask files read.
        seconds: duration of the scan.
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
        """Format the findings, at most ``shown`` of each kind, and a summary line."""
        groups, lines = defaultdict(list), list(self.titles)
        for finding in self.findings:
            groups[finding.split, finding.kind].append(finding)
        for (split, kind), group in groups.items():
            lines.append(f'\n{"FAULT" if group[0].fault else "note"}: {split}: {kind}: {len(group):,}')
            lines += [f'  {finding.line}' for finding in group[:shown]]
            if shown and len(group) > shown:
                lines.append(f'  ... and {len(group) - shown:,} more')
        masks = f' and {count_of(self.masks, "mask")}' if self.masks else ''
        faults = len(self.faults)
        return '\n'.join(
            lines
            + [
                f'\n{count_of(self.images, "image")}{masks} in {self.seconds:.1f} s '
                f'({self.images / max(self.seconds, 1e-9):,.0f} images/s): '
                f'{count_of(faults, "fault")}, {count_of(len(self.findings) - faults, "note")}'
            ]
        )

    def write(self, path: str | Path) -> None:
        """Write all findings to a file, as JSON if its name ends in .json."""
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
        Path(path).write_text(content, encoding='utf-8', errors='backslashreplace')


def _start_worker() -> None:
    cv2.setNumThreads(0)  # one thread per process


def _inspect_all(jobs: Sequence[Job]) -> list[Outcome]:
    return [inspect_files(job) for job in jobs]


def _pool(workers: int) -> ProcessPoolExecutor:
    method = 'fork' if sys.platform == 'linux' else None  # a spawned process would import the whole stack
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_worker)


def scan(jobs: Iterable[Job], workers: int) -> Iterator[Outcome]:
    """Examine jobs in ``workers`` processes, in any order, or in this process with ``workers=0``.

    A file that crashes the decoder does not end the scan: the jobs of its process are repeated one by one.
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
                    running[pool.submit(_inspect_all, chunk)] = chunk
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
    """Examine jobs one by one in a process that may crash."""
    pool = None
    for job in jobs:
        pool = pool or _pool(1)
        try:
            yield from pool.submit(_inspect_all, [job]).result()
        except BrokenProcessPool:
            yield Outcome(job, [FileFinding('crashes the decoder', job.image)])
            pool = None
    if pool:
        pool.shutdown()


def progress_bar(outcomes: Iterable[Outcome], total: int) -> Iterable[Outcome]:
    """Show a progress bar on a terminal while the outcomes are consumed."""
    return tqdm(outcomes, total=total, unit=' images', disable=None, smoothing=0.05)


def verify(
    sources: Sequence[Source], workers: int = 0, progress: Callable = lambda outcomes, total: outcomes
) -> Report:
    """Scan data sets.

    Args:
        sources: the data sets.
        workers: number of processes; 0 reads in this process.
        progress: wraps (iterable, length), for example in a progress bar.
    """
    start = time.perf_counter()
    wanted = {job: None for source in sources for job in source.jobs}  # unique, in order
    outcomes = {outcome.job: outcome for outcome in progress(scan(wanted, workers), len(wanted))}
    findings = []
    for source in sources:
        found, pixels, first = list(source.findings), Counter(), {}
        for job in source.jobs:
            found += outcomes[job].findings
            pixels.update(outcomes[job].labels)
            first |= {value: job.mask for value in outcomes[job].labels if value not in first}
        ranges = [(readable(job.image), outcomes[job].values) for job in source.jobs]
        found += judge_ranges([(path, values) for path, values in ranges if values is not None])
        if source.summarize and pixels:
            found += source.summarize(pixels, first)
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
    """Find images with identical bytes: in training and another split (a fault), or within one split (a note).

    Args:
        splits: for each split its name, and the path and hash of each image.
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
    """Write an ``ImageFiles`` list of the images without a fault, relative to the folder, and return their number.

    File names with a line break, or with spaces at either end, cannot be listed and are left out.
    """
    wrong = {finding.path for finding in report.faults if finding.kind[:3] != 'in ' and finding.kind != NARROW_SET}
    jobs = [job for source in sources for job in source.jobs if printable(job.image) not in wrong]
    good = [os.path.relpath(job.image, folder) for job in jobs]
    good = [name for name in good if name == name.strip() and len(name.splitlines()) == 1]
    Path(path).write_text(''.join(f'{name}\n' for name in good), encoding='utf-8', errors='surrogateescape')
    return len(good)


def check_list(folder: str) -> None:
    """Raise a ValueError for a folder with several splits: a list of all its images would mix them."""
    splits = sorted(name for name in SPLIT_NAMES if os.path.isdir(os.path.join(folder, name)))
    if len(splits) > 1:
        one = os.path.join(folder, TRAIN if TRAIN in splits else splits[0])
        raise ValueError(
            f'--write-list would put the images of {", ".join(splits)} into one list: give one of these folders, such '
            f'as {one}'
        )


def run(args: argparse.Namespace) -> int:
    """Scan the data, print and write the findings, and return the exit code."""
    folder = os.path.isdir(args.data)
    if args.write_list and not folder:
        raise ValueError(f'--write-list lists the good images of a folder, but {args.data} is not a folder')
    if args.write_list:
        check_list(args.data)
    config, listed = names_config(args.data), os.path.isfile(args.data) and not ARCHIVE.search(args.data)
    for option, given, fits, what in (
        ('--split', args.split, config, 'the data loaders of a config'),
        ('--labels', args.labels != 'auto', not config and not listed, 'a folder or a tar'),
        ('--root', args.root, not config and listed, 'a list of images'),
    ):
        if given and not fits and os.path.exists(args.data):
            raise ValueError(f'{option} is for {what}, and {args.data} is none: leave {option} out')
    if args.workers < 0:
        raise ValueError(f'--workers {args.workers}: give 0 or a number of processes')
    for file in filter(None, (args.out, args.write_list)):
        check_writable(file)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    if config:
        cfg = load_config(args.data, args.cfg_options)
        with contextlib.suppress(DataFault):  # a broken annotation file is a finding, see sources_of_config
            apply_class_names(cfg)
        logging.disable(logging.WARNING)  # the report has what data sets log while they are built
        try:
            sources = sources_of_config(cfg, args.split) if args.split else sources_of_config(cfg)
        finally:
            logging.disable(logging.NOTSET)
    elif args.cfg_options:
        raise ValueError(f'--data and --cfg-options change a config, but {args.data} is none')
    else:
        sources = sources_of_path(args.data, args.labels, args.root)
    report = verify(sources, args.workers, progress_bar)
    if args.out:  # first: a terminal may fail to print
        report.write(args.out)
    print(report.text(SHOWN))
    if args.write_list:
        number = write_list(args.write_list, args.data, sources, report)
        print(f'{count_of(number, "good image")} in {args.write_list}')
    return 1 if report.faults else 0
