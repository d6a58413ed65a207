"""What ``tools/knn.py`` does."""

import argparse
from collections.abc import Sequence
from functools import partial

from .. import registry  # noqa: F401
from ..config.load import load_config
from ..evaluation.probe import build_encoder, chosen_blocks, extract_blocks, few_labels, knn_accuracy, linear_accuracy
from ..evaluation.rows import result_row
from ..models.vit import resolve_arch
from ..results.rows import ResultRow, write_rows


def judge(
    config: str,
    checkpoint: str | None,
    seed: int = 0,
    tasks: Sequence[str] = ('knn',),
    labels: Sequence[str] = ('all',),
    k: int = 20,
    source: str = 'online',
    workers: int = 0,
    options: dict | None = None,
    data: str | None = None,
    method: str | None = None,
    label: str = 'reproduced',
    blocks: Sequence[int | str] | None = None,
) -> list[ResultRow]:
    """What ``tools/knn.py`` does for one encoder; see there. ``seed`` draws the labeled images and untrained weights.

    ``blocks``: those after which features are judged, from 1, or ``['all']``; None: the one that the config says.

    Raises:
        ValueError: for an unusable number of labels, a block that is not there, or a checkpoint that does not fit.
        FileNotFoundError: if the checkpoint or the data is missing.
    """
    if bad := [n for n in labels if n != 'all' and not (n.isdecimal() and int(n) > 0)]:
        raise ValueError(f'--labels {bad[0]!r}: give "all" or a number of images per class')
    cfg = load_config(config, options)
    if blocks:
        blocks = chosen_blocks(blocks, resolve_arch(cfg.model.backbone.arch)['depth'])
        cfg.model.backbone.depth = blocks[-1]
    model = build_encoder(cfg, checkpoint, source, seed)
    blocks, report = blocks or [model.backbone.depth], getattr(model.backbone, 'load_report', None)
    row = partial(
        result_row,
        checkpoint,
        report.hash if report else '',
        method=method,
        metric='accuracy',
        seed=seed,
        data=data or cfg.train_dataloader.dataset.type,
        label=label,
    )
    reference, query = (
        extract_blocks(model, loader, cfg.test_dataloader.dataset.pipeline, blocks, workers=workers)
        for loader in (cfg.train_dataloader, cfg.test_dataloader)
    )
    rows = []
    for number in labels:
        index = slice(None) if number == 'all' else few_labels(reference[0][1], int(number), seed)
        for block, (features, classes), queries in zip(blocks, reference, query, strict=True):
            chosen, place = (features[index], classes[index]), f'block {block} of {model.backbone.arch_depth}'
            for task in tasks:
                value, protocol = (
                    (knn_accuracy(chosen, queries, k), f'k={k}, {place}')
                    if task == 'knn'
                    else (linear_accuracy(chosen, queries), f'logistic regression, {place}')
                )
                rows.append(row(task=task, labels=number, value=value, protocol=protocol))
    return rows


def run(args: argparse.Namespace) -> None:
    """Judge each of the encoders, print their numbers, and keep them as rows if asked for."""
    rows = []
    for seed, checkpoint in enumerate(args.init or [None] * args.untrained, args.seed):
        for row in judge(
            args.config,
            checkpoint,
            seed,
            tasks=args.tasks,
            labels=args.labels,
            k=args.k,
            source=args.source,
            workers=args.workers,
            options=args.cfg_options,
            data=args.data,
            method=args.method,
            label=args.label,
            blocks=args.blocks,
        ):
            block = f' {row.protocol.rpartition(", ")[2]}' if args.blocks else ''
            print(
                f'{row.data} {row.method} seed {row.seed} {row.task:<6}{block} {row.labels:>4} labels: '
                f'{row.value:.2f} %',
                flush=True,
            )
            rows.append(row)
    if args.rows:
        write_rows(args.rows, rows)
