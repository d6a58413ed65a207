"""Evaluate a trained model."""

import argparse
import json

from mmengine.dist import is_main_process

from .. import registry  # noqa: F401
from ..config.steps import evaluation_config
from ..engine.runner.build import await_processes, build_runner
from ..results.rows import replace_file


def evaluate(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    options: dict | None = None,
    launcher: str = 'none',
    tta: bool = False,
) -> dict[str, float]:
    """Return the metrics of a checkpoint on the test data of its config."""
    cfg = evaluation_config(config, checkpoint, options, tta)
    metrics = build_runner(cfg, config, work_dir, launcher).test()
    await_processes()
    return metrics


def run(args: argparse.Namespace) -> None:
    """Evaluate a model and write the metrics to ``--out`` if given."""
    metrics = evaluate(args.config, args.checkpoint, args.work_dir, args.cfg_options, args.launcher, args.tta)
    if args.out and is_main_process():
        replace_file(args.out, json.dumps(metrics, indent=1, default=float) + '\n')
