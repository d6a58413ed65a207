"""Evaluate frozen features by k-NN and logistic regression."""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .. import registry  # noqa: F401
from ..checkpoints import read_checkpoint
from ..checkpoints.folders import checkpoint_file
from ..config.classes import check_same_classes
from ..config.load import load_config
from ..data.scan import shorten
from ..data.subsets import few_labels, leaves
from ..data.tar import is_tar_path, split_tar_path
from ..evaluation.chance import chance_warning
from ..evaluation.probe import build_encoder, chosen_blocks, extract_blocks, knn_accuracy, linear_accuracy
from ..evaluation.rankme import RankMe, before_norm
from ..evaluation.rows import config_hash, data_hash, data_name, frozen_protocol, labels_of, result_row, run_facts_of
from ..models.vit import resolve_arch
from ..places import REPOSITORY
from ..results.rows import ResultRow, write_rows
from ..text import count_of
from .outputs import check_rows

NEIGHBORS = 20


def evaluate_features(
    config: str,
    checkpoint: str | None,
    seed: int = 0,
    tasks: Sequence[str] = ('knn',),
    labels: Sequence[str] | None = None,
    k: int | None = None,
    source: str = 'online',
    workers: int = 0,
    options: dict | None = None,
    data: str | None = None,
    method: str | None = None,
    label: str = 'measured',
    blocks: Sequence[int | str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[ResultRow]:
    """Evaluate the frozen features of one encoder.

    Args:
        config: downstream config with backbone, data and input statistics.
        checkpoint: file with an encoder, or the folder of a run; None for random weights.
        seed: seed of the labeled images and of random weights.
        tasks: ``knn`` and ``linear`` (logistic regression).
        labels: numbers of labeled images per class, or ``all``; default: the number that the config limits them to, or
            all.
        k: number of neighbors; default: 20, or all labeled images if there are fewer.
        source: which encoder of a file with several, see :func:`find_encoder`.
        workers: number of processes that read images.
        options: config values to override.
        data: data name in the rows; default: from the config.
        method: method name in the rows; default: from the checkpoint.
        label: label of the rows.
        blocks: blocks to evaluate, counted from 1, or ``['all']``; None for the last block of the config.
        tell: gets a line with RankMe of the labeled images for each block. It is no row, because it is no accuracy.

    Raises:
        ValueError: if a number of labels or a block is invalid, ``all`` labels are asked for and the config limits
            them, or the checkpoint does not match the config.
        FileNotFoundError: if the checkpoint or the data is missing.
    """
    begin = time.monotonic()
    if bad := [n for n in labels or () if n != 'all' and not (n.isdecimal() and int(n) > 0)]:
        raise ValueError(f'--labels {bad[0]!r}: give "all" or a number of images per class')
    if k is not None and k < 1:
        raise ValueError(f'--k {k}: give at least one neighbor')
    if k is not None and 'knn' not in tasks:
        raise ValueError(f'--k {k} is for k-NN, which is not among the tasks: add knn to --tasks or leave --k out')
    if 'randomness.seed' in (options or {}):
        raise ValueError('randomness.seed has no effect here: give --seed')
    if checkpoint is None and source != 'online':
        raise ValueError(f'--source {source} chooses an encoder of a file: give --init, too, or leave --source out')
    cfg = load_config(config, options)
    check_classifier(cfg)
    labels = labels or [labels_of(cfg)]
    if 'all' in labels:
        labels_of(cfg, 'all')  # an error if the config limits them
    numbers = chosen_blocks(blocks, resolve_arch(cfg.model.backbone.arch)['depth']) if blocks else []
    if numbers:
        cfg.blocks = numbers
        cfg.model.backbone.depth = numbers[-1]
    columns = dict(
        data=data or data_name(cfg),
        method=method,
        metric='accuracy',
        seed=seed,
        label=label,
        config_hash=config_hash(cfg),
        data_hash=data_hash(cfg),
    )
    checkpoint = checkpoint and checkpoint_file(checkpoint, partial(print, file=sys.stderr))
    content = read_checkpoint(checkpoint) if checkpoint else {}
    model = build_encoder(cfg, checkpoint, source, seed, content)
    pipeline = cfg.test_dataloader.dataset.pipeline
    numbers, report = numbers or [model.backbone.depth], getattr(model.backbone, 'load_report', None)
    if report:
        print(report, file=sys.stderr)
    ranks = [RankMe() for _ in numbers]
    turns = itertools.cycle(ranks)  # of each batch, the blocks come in their order
    with before_norm(model.backbone, lambda features: next(turns).add(features)) if tell else nullcontext():
        reference = extract_blocks(model, cfg.train_dataloader, pipeline, numbers, workers=workers)
    query = extract_blocks(model, cfg.test_dataloader, pipeline, numbers, workers=workers)
    for rank, block in zip(ranks, numbers, strict=True) if tell else ():
        tell(
            f'RankMe {rank.value():.2f} of {rank.width} features, block {block} of {model.backbone.arch_depth}, '
            f'{count_of(rank.count, "labeled image")}'
        )
    found = []
    for number in labels:
        index = (
            slice(None) if number == 'all' else few_labels(reference[0][1], int(number), seed, remedy='lower --labels')
        )
        for block, (features, classes), queries in zip(numbers, reference, query, strict=True):
            chosen = features[index], classes[index]
            if k is not None and k > len(chosen[1]):
                there = count_of(len(chosen[1]), 'labeled image is', 'labeled images are')
                raise ValueError(f'--k {k}: only {there} there; give at most that many neighbors')
            for task in tasks:
                neighbors = k or NEIGHBORS
                value = knn_accuracy(chosen, queries, neighbors) if task == 'knn' else linear_accuracy(chosen, queries)
                protocol = frozen_protocol(task, block, model.backbone.arch_depth, neighbors)
                if warning := chance_warning(value, len(classes.unique()), len(queries[1])):
                    place = protocol.rpartition(', ')[2]
                    print(f'warning: {task}, {number} labels, {place}: {warning}', file=sys.stderr)
                found.append(dict(task=task, labels=number, value=value, protocol=protocol))
    gpu_seconds = time.monotonic() - begin if torch.cuda.is_available() else 0.0
    facts, weights = run_facts_of(content), report.hash if report else ''
    return [result_row(checkpoint, weights, facts, gpu_seconds, **columns, **row) for row in found]


def check_classifier(cfg: Config) -> None:
    """Raise a ValueError for a config of another kind than configs/cls."""
    missing = [name for name in ('train_dataloader', 'test_dataloader') if not cfg.get(name)]
    kind = cfg.get('model', {}).get('type')
    if kind == 'ImageClassifier' and not missing:
        return
    found = f'no {missing[0]}' if kind == 'ImageClassifier' else f'the model {kind}'
    tuned = [
        path
        for path in (f'configs/cls/{Path(cfg.filename).stem}{end}.py' for end in ('_finetune', '_linear'))
        if (REPOSITORY / path).is_file()
    ]
    raise ValueError(
        f'{cfg.filename} has {found}, but k-NN needs labeled images and an ImageClassifier: give a config of '
        f'configs/cls{", such as " + tuned[0] if tuned else ""}'
    )


def check_sets(cfg: Config) -> None:
    """Raise a ValueError if queries are among the reference images, or if their labels mean other classes."""
    reference, query = (
        DATASETS.build(dict(loader.dataset, pipeline=[], test_mode=True))
        for loader in (cfg.train_dataloader, cfg.test_dataloader)
    )
    check_apart(reference, query, 'train_dataloader and test_dataloader', ', such as --data TRAIN VAL')
    classes = (getattr(reference, 'metainfo', None) or {}).get('classes')
    check_same_classes(classes or (), query, 'train_dataloader')


def check_apart(reference: Dataset, query: Dataset, names: str, example: str = '') -> None:
    """Raise a ValueError if two data sets share images; ``names`` says in the message what they are."""
    if shared := sorted({path for path, _ in images_of(reference) & images_of(query)}):
        raise ValueError(
            f'{names} share {count_of(len(shared), "image")} ({shorten(shared, 2)}), and each would be its own '
            f'neighbor: give labeled images and others{example}'
        )


def images_of(dataset: Dataset) -> set[tuple[str, str]]:
    """Return the file of each sample, and what tells the sample from others of the same file, such as a box.

    Links are followed. For a data set without ``get_data_info`` the result is empty.
    """
    real, links, found = cache(os.path.realpath), cache(links_in), set()
    for leaf in leaves(dataset):
        for index in range(len(leaf) if hasattr(leaf, 'get_data_info') else 0):
            info = dict(leaf.get_data_info(index))
            part = {key: info[key] for key in sorted(info.keys() - {'img_path', 'gt_label', 'sample_idx'})}
            if path := info.get('img_path'):
                place, name = split_tar_path(path)[:2] if is_tar_path(path) else os.path.split(path)
                found.add((links(place).get(name) or os.path.join(real(place), name), str(part)))
    return found


def links_in(folder: str) -> dict[str, str]:
    """Return what the links in a folder lead to; one listing is cheaper than a look at each file."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: os.path.realpath(entry.path) for entry in entries if entry.is_symlink()}
    except OSError:  # an archive, or an address
        return {}


def run(args: argparse.Namespace) -> None:
    """Evaluate each encoder, print the results and append them to ``--rows`` if given."""
    if args.untrained is not None and args.untrained < 1:
        raise ValueError(f'--untrained {args.untrained}: give at least one encoder')
    if args.rows:
        check_rows(args.rows)
    cfg = load_config(args.config, args.cfg_options)
    check_classifier(cfg)
    check_sets(cfg)
    for seed, checkpoint in enumerate(args.init or [None] * args.untrained, args.seed):
        rows = evaluate_features(
            args.config,
            checkpoint,
            seed,
            tasks=args.tasks or ['knn'],
            labels=args.labels,
            k=args.k,
            source=args.source,
            workers=args.workers,
            options=args.cfg_options,
            data=args.data_name,
            method=args.method,
            label=args.label,
            blocks=args.blocks,
            tell=lambda line, seed=seed: print(f'seed {seed} {line}', flush=True),
        )
        for row in rows:
            block = f', {row.protocol.rpartition(", ")[2]}' if args.blocks else ''
            task = 'k-NN' if row.task == 'knn' else 'logistic regression'
            labels = 'all labels' if row.labels == 'all' else count_of(int(row.labels), 'label')
            print(f'{row.data} {row.method} seed {row.seed} {task}{block}, {labels}: {row.value:.2f} %', flush=True)
        if args.rows:
            write_rows(args.rows, rows)
