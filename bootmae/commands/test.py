"""Evaluate a trained model."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .. import registry  # noqa: F401
from ..checkpoints.folders import checkpoint_file
from ..checkpoints.resume import Found
from ..config.classes import check_same_classes, recorded_classes
from ..config.load import load_config
from ..config.steps import evaluation_config
from ..engine.hooks.provenance import encoder_and_cost
from ..engine.runner.build import await_processes, build_runner, check_launcher, is_first
from ..engine.unwrap import bare_model
from ..evaluation.chance import warn_of_trained
from ..evaluation.rows import check_labels, recorded_length, start_of, trained_rows
from ..results.rows import replace_file, write_rows
from .outputs import check_work_dir, check_writable, columns_of_rows


class SameClasses(Hook):
    """Refuses to test on data whose labels mean other classes than those of the training."""

    def __init__(self, recorded: Sequence[str]):
        self.recorded = recorded

    def before_test(self, runner: Runner) -> None:
        check_same_classes(self.recorded, runner.test_dataloader.dataset, f'the training of {runner.cfg.load_from}')


def evaluate(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    options: dict | None = None,
    launcher: str = 'none',
    tta: bool = False,
    init: str | None = None,
    rows: str | None = None,
    row: Sequence[str] = (),
    source: str = 'online',
) -> dict[str, float]:
    """Return the metrics of a checkpoint on the test data of its config, and write them to ``rows`` if given.

    ``tools/test.py --help`` explains the arguments.
    """
    check_launcher(launcher, 'tools/dist_test.sh')
    check_work_dir(work_dir, options)
    if init and not rows:
        raise ValueError(f'--init {init} is only for the rows: add --rows FILE.csv, or leave out --init')
    given = load_config(config, options) if rows else None
    columns = columns_of_rows(given, rows, row, 'test')
    tell = print if is_first(launcher) else lambda line: None
    init = init and checkpoint_file(init, tell)
    cfg, content = evaluation_config(config, checkpoint, options, tta, source, tell)
    if rows and content:
        meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
        start = start_of(meta, cfg.load_from, init, 'method' in columns)
        check_labels(meta, given, cfg.load_from)
        length = recorded_length(meta, given, cfg.load_from)
        columns['seed'] = columns['seed'] if meta.get('seed') is None else meta['seed']
    runner = build_runner(cfg, config, work_dir, launcher)
    runner.register_hook(SameClasses(recorded_classes(content)))
    runner.found = Found(Path(cfg.load_from), content or None)  # so that it is read once
    del content  # as soon as the weights are loaded
    metrics = runner.test()
    warn_of_trained(metrics, bare_model(runner), runner.test_dataloader.dataset)
    if rows and is_main_process():
        gpu_seconds, (encoder, encoder_hash, facts) = encoder_and_cost(runner)[1], start
        found = trained_rows(given, metrics, columns, encoder, encoder_hash, gpu_seconds, tta, length, facts)
        write_rows(rows, found)
    await_processes()
    return metrics


def run(args: argparse.Namespace) -> None:
    """Evaluate a model and write the metrics to ``--out`` and ``--rows`` if given."""
    if args.out:
        check_writable(args.out)
    metrics = evaluate(
        args.config,
        args.checkpoint,
        args.work_dir,
        args.cfg_options,
        args.launcher,
        args.tta,
        args.init,
        args.rows,
        args.row,
        args.source,
    )
    if args.out and is_main_process():
        replace_file(args.out, json.dumps(metrics, indent=1, default=float) + '\n')
