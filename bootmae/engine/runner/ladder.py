"""A way on where losses stay not finite: again from the last good checkpoint, with other settings."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

from mmengine.config import Config
from mmengine.logging import print_log

from ...distributed.exits import NonFiniteError

RUNGS = ('rollback', 'fp32_decoder', 'fp32')
RESEED = 100_003  # seed + epoch gives the order of an epoch: no epoch of the run repeats one of another seed
Result = TypeVar('Result')


def check_ladder(cfg: Config) -> list[str]:
    """The rungs of ``cfg.nonfinite_ladder``, none by default.

    Raises:
        ValueError: for an unknown or repeated rung, or one that the config's model has no use for.
    """
    rungs = list(cfg.get('nonfinite_ladder') or ())
    if set(rungs) - set(RUNGS) or len(set(rungs)) < len(rungs):
        raise ValueError(f'nonfinite_ladder={rungs}: give each of {", ".join(RUNGS)} at most once')
    if 'fp32_decoder' in rungs and cfg.model.type != 'BootMAE':
        raise ValueError(f'nonfinite_ladder={rungs}: fp32_decoder is for BootMAE, not {cfg.model.type}: leave it out')
    return rungs


def next_rung(cfg: Config, rung: str) -> None:
    """Change a config for the next attempt.

    Every rung goes back to a checkpoint of before the bad steps. ``rollback`` takes another seed from there on: with
    the same one, order, crops and masks would be the same, and so would be the end. ``fp32_decoder`` works out the
    decoders of BootMAE without autocast, ``fp32`` everything.
    """
    if rung == 'rollback':
        hook = cfg.default_hooks.get('nonfinite') or dict(type='NonFiniteHook')
        cfg.default_hooks.nonfinite = dict(hook, reseed=hook.get('reseed', 0) + RESEED)
        if not (cfg.get('resume') and cfg.get('load_from')):  # from the beginning, where no checkpoint says the seed
            cfg.randomness = dict(cfg.get('randomness') or {})
            cfg.randomness.seed = (cfg.randomness.get('seed') or 0) + RESEED
    elif rung == 'fp32_decoder':
        cfg.model.fp32_decoder = True
    else:
        cfg.optim_wrapper['type'] = 'GuardedOptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)


def ladder(run_once: Callable[[Config], Result], cfg: Config) -> Result:
    """Run; where losses stay not finite, again from the last good checkpoint with the next of ``cfg.nonfinite_ladder``.

    Changes stay: a later rung keeps those of the earlier ones. Each is taken once, so that this ends.

    Args:
        run_once: builds a runner of the config, and trains.
        cfg: the config; changed in place.

    Raises:
        NonFiniteError: of the last rung.
    """
    for rung in check_ladder(cfg):
        try:
            return run_once(cfg)
        except NonFiniteError as error:
            message, checkpoint = str(error), error.checkpoint
        if checkpoint:
            cfg.resume, cfg.load_from = True, checkpoint
        next_rung(cfg, rung)
        start = checkpoint or 'where it began'
        print_log(f'{message}\nnonfinite_ladder: {rung}, from {start}', 'current', logging.WARNING)
        gc.collect()  # the runner that failed, before the next one is built
    return run_once(cfg)
