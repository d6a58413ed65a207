"""Train a config."""

import argparse
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from .. import registry  # noqa: F401
from ..config.batch import norm_note
from ..config.load import load_config
from ..config.steps import training_config
from ..engine.hooks.provenance import encoder_and_cost
from ..engine.runner.build import await_processes, build_runner, processes
from ..engine.unwrap import bare_model
from ..evaluation.chance import warn_of_trained
from ..evaluation.rows import trained_columns, trained_rows
from ..results.rows import write_rows
from .plan import as_text, dry_run


class LastValidation(Hook):
    """Keeps the metrics of the newest validation."""

    metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics


def rehearse(args: argparse.Namespace) -> None:
    """``--dry-run``: find what would stop the run, and print its plan."""
    if args.rows:
        trained_columns(load_config(args.config, args.cfg_options), args.row)
    plan = dry_run(
        args.config, args.cfg_options, processes(args.launcher), args.auto_scale_lr, args.init, args.source, args.resume
    )
    print(f'{as_text(plan)}\nno fault was found; nothing was trained')


def train(
    config: str,
    work_dir: str | None = None,
    options: dict | None = None,
    init: str | None = None,
    source: str = 'online',
    resume: str | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    resume_changed: bool = False,
    rows: str | None = None,
    row: Sequence[str] = (),
) -> Runner:
    """Train a config; ``tools/train.py --help`` explains the arguments."""
    columns = trained_columns(load_config(config, options), row) if rows else {}
    validation = LastValidation()
    cfg, batch = training_config(
        config, options, processes(launcher), auto_scale_lr, init, source, resume, resume_changed
    )
    runner = build_runner(cfg, config, work_dir, launcher)
    runner.register_hook(validation)
    print_log(f'global batch: {batch}{norm_note(batch, runner.model)}', logger='current')
    try:
        runner.train()
    finally:  # also after an exception: restore the signal handlers and end the heartbeat's threads
        for hook in runner.hooks:
            getattr(hook, 'close', lambda: None)()
    if validation.metrics:
        warn_of_trained(validation.metrics, bare_model(runner), runner.val_dataloader.dataset)
    if rows:
        # A run that was resumed after its last step has not been validated yet.
        metrics = validation.metrics or runner.val_loop.run()
        encoder_hash, gpu_seconds = encoder_and_cost(runner)
        if is_main_process():
            cfg = load_config(config, options)  # without the changes for this run
            write_rows(rows, trained_rows(cfg, metrics, columns, init, encoder_hash, gpu_seconds))
    await_processes()
    return runner
