"""Evaluate a trained model."""

import argparse
import json
from collections.abc import Sequence

from mmengine.dist import is_main_process

from .. import registry  # noqa: F401
from ..config.load import load_config
from ..config.steps import evaluation_config
from ..engine.hooks.provenance import encoder_and_cost
from ..engine.runner.build import await_processes, build_runner
from ..engine.unwrap import bare_model
from ..evaluation.chance import warn_of_trained
from ..evaluation.rows import trained_columns, trained_rows
from ..results.rows import replace_file, write_rows


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
    columns = trained_columns(load_config(config, options), row) if rows else {}
    cfg = evaluation_config(config, checkpoint, options, tta, source)
    runner = build_runner(cfg, config, work_dir, launcher)
    metrics = runner.test()
    warn_of_trained(metrics, bare_model(runner), runner.test_dataloader.dataset)
    if rows and is_main_process():
        encoder_hash, gpu_seconds = encoder_and_cost(runner)
        cfg = load_config(config, options)  # without the changes for this test
        write_rows(rows, trained_rows(cfg, metrics, columns, init, encoder_hash, gpu_seconds, tta))
    await_processes()
    return metrics


def run(args: argparse.Namespace) -> None:
    """Evaluate a model and write the metrics to ``--out`` and ``--rows`` if given."""
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
