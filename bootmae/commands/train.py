"""Train a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from .. import registry  # noqa: F401
from ..checkpoints.folders import checkpoint_file, claim_folder
from ..checkpoints.run_identity import RunIdentity, settings_of
from ..config.batch import Batch, norm_note
from ..config.load import load_config
from ..config.steps import training_config
from ..config.weights import start_weights
from ..engine.hooks.checkpoint import folder_in
from ..engine.hooks.provenance import encoder_and_cost
from ..engine.runner.build import await_processes, build_runner, is_first, processes, work_folder
from ..engine.unwrap import bare_model
from ..evaluation.chance import warn_of_trained
from ..evaluation.rows import trained_rows
from ..results.rows import write_rows
from .outputs import columns_of_rows
from .plan import as_text, dry_run


class LastValidation(Hook):
    """Keeps the metrics of the newest validation."""

    metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics


def run_identity(given: Config, cfg: Config, batch: Batch) -> RunIdentity:
    """Return the identity of a run, from its config as given and as adapted to this number of processes."""
    loop = cfg.train_cfg
    length = (
        dict(max_epochs=loop.max_epochs)
        if loop.get('max_epochs')
        else dict(max_steps=loop.max_iters // batch.accumulation)
        if loop.get('max_iters')
        else {}
    )
    init, init_hash = start_weights(cfg)
    seed = cfg.get('randomness', {}).get('seed')
    return RunIdentity(settings_of(given), seed, init, init_hash, dict(global_batch=batch.global_size) | length)


def claim(folder: Path, identity: RunIdentity, resume: str | None, move_old: bool, launcher: str) -> str:
    """Refuse to start a run among the checkpoints of another one; see :func:`claim_folder`. Returns a note for the log.

    A run that resumes from its own folder is free to do so. Only the first process moves files.
    """
    if move_old and resume:
        raise ValueError('--move-aside starts a new run and --resume continues one: leave one of them out')
    if resume == 'auto' or (resume and Path(resume).resolve().parent == folder.resolve()):
        return ''
    if move_old and not is_first(launcher):
        return ''
    note = claim_folder(folder, identity, move_old)
    return '' if resume else note


def rehearse(args: argparse.Namespace) -> None:
    """``--dry-run``: find what would stop the run, and print its plan, in the first process."""
    if not is_first(args.launcher):
        return
    if args.rows:
        columns_of_rows(load_config(args.config, args.cfg_options), args.rows, args.row, 'val')
    init = args.init and checkpoint_file(args.init)
    resume = args.resume if args.resume in (None, 'auto') else checkpoint_file(args.resume)
    plan = dry_run(
        args.config, args.cfg_options, processes(args.launcher), args.auto_scale_lr, init, args.source, resume
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
    move_old: bool = False,
) -> Runner:
    """Train a config; ``tools/train.py --help`` explains the arguments."""
    tell = print if is_first(launcher) else lambda line: None
    init = init and checkpoint_file(init, tell)
    resume = resume if resume in (None, 'auto') else checkpoint_file(resume, tell)
    given = load_config(config, options)
    columns = columns_of_rows(given, rows, row, 'val')
    validation = LastValidation()
    cfg, batch = training_config(
        config, options, processes(launcher), auto_scale_lr, init, source, resume, resume_changed
    )
    identity = run_identity(given, cfg, batch)
    checkpoint = (cfg.default_hooks.get('checkpoint') or {}).get('out_dir')
    note = claim(folder_in(work_folder(cfg, config, work_dir), checkpoint), identity, resume, move_old, launcher)
    runner = build_runner(cfg, config, work_dir, launcher)
    runner.identity = identity
    if note:
        runner.logger.warning(note)
    runner.register_hook(validation)
    print_log(f'global batch: {batch}{norm_note(batch, runner.model)}', logger='current')
    try:
        runner.train()
    finally:  # also after an exception: restore the signal handlers and end the heartbeat's threads
        for hook in runner.hooks:
            getattr(hook, 'close', lambda: None)()
        runner.end_workers()
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
