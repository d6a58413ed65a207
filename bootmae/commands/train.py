"""Train a config."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from .. import registry  # noqa: F401
from ..checkpoints.folders import checkpoint_file, claim_folder
from ..checkpoints.load import read_encoder, tensors_hash
from ..checkpoints.read import read_meta
from ..checkpoints.resume import check_identity, choose_checkpoint
from ..checkpoints.run_identity import RunIdentity, settings_of
from ..checkpoints.run_lock import check_free, training_in
from ..config.batch import Batch, apply_batch, norm_note
from ..config.load import load_config
from ..config.steps import training_config
from ..config.weights import start_weights
from ..engine.hooks.checkpoint import folder_in
from ..engine.hooks.provenance import encoder_and_cost, initial_facts
from ..engine.runner.build import await_processes, build_runner, check_launcher, is_first, processes, work_folder
from ..engine.unwrap import bare_model
from ..evaluation.chance import warn_of_trained
from ..evaluation.rows import is_weights, recorded_encoder, trained_rows
from ..results.rows import write_rows
from .outputs import check_work_dir, columns_of_rows
from .plan import as_text, dry_run


class LastValidation(Hook):
    """Keeps the metrics of the newest validation."""

    metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics


class StartOfRows(Hook):
    """Finds the encoder that result rows name, before the first step: a resumed run records the one it started from.

    Attributes:
        encoder: File of the encoder; None for random weights.
        facts: Facts about its pretraining; None for those in the file.
    """

    encoder: str | None = None
    facts: dict[str, Any] | None = None

    def __init__(self, given: Config, init: str | None):
        self.given, self.init, self.loaded = given, init, ''

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.loaded = (checkpoint['meta'].get('identity') or {}).get('init', '')

    def before_train(self, runner: Runner) -> None:
        recorded = initial_facts(runner)
        if self.init:
            self.encoder = self.init
        elif digest := recorded.get('init_hash'):
            name = runner.identity.init or self.loaded or recorded.get('init', '')
            self.encoder = recorded_encoder(name, digest, 'this run')
        else:  # weights whose encoder is not recorded, or random ones
            settings = settings_of(self.given)
            self.encoder, self.facts = next((settings[key] for key in settings if is_weights(key)), None), {}


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
    if resume == 'auto' or (resume and Path(resume).resolve().parent == folder.resolve()):
        return ''
    if move_old and not is_first(launcher):
        return ''
    note = claim_folder(folder, identity, move_old)
    return '' if resume else note


def checkpoints_of(cfg: Config, config: str, work_dir: str | None) -> Path:
    """Return the folder for the checkpoints of a run."""
    settings = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return folder_in(work_folder(cfg, config, work_dir), settings.get('out_dir'))


def check_arguments(
    init: str | None,
    source: str | None,
    resume: str | None,
    resume_changed: bool,
    move_old: bool,
    launcher: str,
    work_dir: str | None,
    options: dict | None,
) -> None:
    """Raise a ValueError for arguments that contradict each other or would have no effect."""
    check_launcher(launcher, 'tools/dist_train.sh')
    check_work_dir(work_dir, options)
    if source and not init:
        raise ValueError(f'--source {source}: --source needs --init, whose encoder it chooses; leave out --source')
    if resume_changed and not resume:
        raise ValueError(
            '--resume-changed (resume_changed=True) only says how to resume: add --resume (resume=True), or leave it '
            'out to start a new run'
        )
    if move_old and resume:
        raise ValueError('--move-aside starts a new run and --resume continues one: leave one of them out')


def check_folder(args: argparse.Namespace, init: str | None, resume: str | None, images: int) -> None:
    """Refuse what a run would refuse about the checkpoints in its folder and the one to resume. Changes nothing.

    Args:
        args: Arguments of ``tools/train.py``.
        init: File of ``--init``.
        resume: File of ``--resume``, or ``auto``.
        images: Number of training images.
    """
    given, cfg = (load_config(args.config, args.cfg_options) for _ in range(2))
    batch = apply_batch(cfg, processes(args.launcher), args.auto_scale_lr)
    identity = run_identity(given, cfg, batch)
    if init:
        state = read_encoder(init, args.source or 'online').state
        identity = replace(identity, init=init, init_hash=tensors_hash(state))
    folder, facts = checkpoints_of(cfg, args.config, args.work_dir), identity.facts | dict(train_samples=images)
    check_free(folder)
    if not args.move_aside:  # it would move the other checkpoints
        claim(folder, identity, resume, False, args.launcher)
    if resume == 'auto':
        choose_checkpoint(folder, lambda line: print(f'warning: {line}'), identity, facts, args.resume_changed)
    elif resume:
        check_identity(read_meta(resume), resume, identity, facts, args.resume_changed)


def rehearse(args: argparse.Namespace) -> None:
    """``--dry-run``: find what would stop the run, and print its plan, in the first process."""
    check_arguments(
        args.init,
        args.source,
        args.resume,
        args.resume_changed,
        args.move_aside,
        args.launcher,
        args.work_dir,
        args.cfg_options,
    )
    if not is_first(args.launcher):
        return
    if args.rows or args.row:
        columns_of_rows(load_config(args.config, args.cfg_options), args.rows, args.row, 'val')
    init = args.init and checkpoint_file(args.init)
    resume = args.resume if args.resume in (None, 'auto') else checkpoint_file(args.resume)
    source = args.source or 'online'
    plan = dry_run(args.config, args.cfg_options, processes(args.launcher), args.auto_scale_lr, init, source, resume)
    check_folder(args, init, resume, plan.train_images)
    print(f'{as_text(plan)}\nno fault was found; nothing was trained')


def train(
    config: str,
    work_dir: str | None = None,
    options: dict | None = None,
    init: str | None = None,
    source: str | None = None,
    resume: str | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    resume_changed: bool = False,
    rows: str | None = None,
    row: Sequence[str] = (),
    move_old: bool = False,
) -> Runner:
    """Train a config; ``tools/train.py --help`` explains the arguments."""
    check_arguments(init, source, resume, resume_changed, move_old, launcher, work_dir, options)
    tell = print if is_first(launcher) else lambda line: None
    init = init and checkpoint_file(init, tell)
    resume = resume if resume in (None, 'auto') else checkpoint_file(resume, tell)
    given = load_config(config, options)
    columns = columns_of_rows(given, rows, row, 'val')
    validation, start = LastValidation(), StartOfRows(given, init)
    cfg, batch = training_config(
        config, options, processes(launcher), auto_scale_lr, init, source or 'online', resume, resume_changed
    )
    identity = run_identity(given, cfg, batch)
    folder = checkpoints_of(cfg, config, work_dir)
    with training_in(folder) if is_first(launcher) else nullcontext():
        note = claim(folder, identity, resume, move_old, launcher)
        runner = build_runner(cfg, config, work_dir, launcher)
        runner.identity = identity
        if note:
            runner.logger.warning(note)
        runner.register_hook(validation)
        if rows:
            runner.register_hook(start)
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
            columns['seed'] = runner.seed  # also of a config without a seed
            cfg = load_config(config, options)  # without the changes for this run
            found = trained_rows(cfg, metrics, columns, start.encoder, encoder_hash, gpu_seconds, run=start.facts)
            write_rows(rows, found)
    await_processes()
    return runner
