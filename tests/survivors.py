"""Runs of a toy model whose saves can fail or be killed at every file operation."""

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS

from bootmae.checkpoints import checksum
from bootmae.engine.runner.runner import SuiteRunner

COUNT = itertools.count()
KILLED = 9


@DATASETS.register_module(force=True)
class SurvivorData(BaseDataset):
    """Eight numbers."""

    def load_data_list(self) -> list[dict]:
        return [dict(x=torch.tensor([float(k), 1.0])) for k in range(8)]


@MODELS.register_module(force=True)
class SurvivorModel(BaseModel):
    """A linear layer that learns to give 1."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.linear = torch.nn.Linear(2, width)

    def forward(self, x, mode: str, **kwargs):
        out = self.linear(torch.stack(x) if isinstance(x, list) else x)
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else [dict(out=row) for row in out]


@METRICS.register_module(force=True)
class SurvivorMetric(BaseMetric):
    """Returns the listed scores, one per validation."""

    scores: list[float] = []

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return dict(acc=self.scores.pop(0))


def toy_runner(work_dir: Path, checkpoint: dict | None = None, epochs: int = 2, **changes) -> SuiteRunner:
    """Build a runner with four iterations per epoch; ``changes`` are merged into its config."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='SurvivorData'),
    )
    hook = dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=1)
    cfg = dict(
        model=dict(type='SurvivorModel'),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        log_level='ERROR',
        default_scope='mmengine',
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        experiment_name=f'survivor_{next(COUNT)}',
        param_scheduler=[dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=8)],
        randomness=dict(seed=0),
        default_hooks=dict(checkpoint=hook | (checkpoint or {})),
    )
    config = Config(cfg)
    config.merge_from_dict(changes)
    return SuiteRunner.from_cfg(config)


def validated(scores: list[float]) -> dict:
    """Return changes for :func:`toy_runner` that give these scores in a validation after each epoch."""
    SurvivorMetric.scores = list(scores)
    return dict(
        val_dataloader=dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='SurvivorData'),
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='SurvivorMetric'),
    )


class Boundaries:
    """Counts the boundaries of all writing, before and within and after, and acts at one of them.

    ``patch`` is pytest's monkeypatch.
    """

    def __init__(self, patch, act: Callable[[], None], at: int | None):
        self.seen, self.act, self.at = [], act, at
        for owner, name in ((os, 'fsync'), (os, 'replace'), (os, 'unlink'), (os, 'remove'), (Path, 'unlink')):
            patch.setattr(owner, name, self._around(getattr(owner, name), name))
        patch.setattr(checksum.SummingFile, 'write', self._by_halves)

    @property
    def _by_halves(self) -> Callable:
        def write(file: checksum.SummingFile, data: bytes) -> int:
            half = len(data) // 2
            try:
                self.reach('before a write')
                file.file.write(data[:half])
                file.file.flush()
                self.reach('within a write')
                file.file.write(data[half:])
            except OSError as error:
                file.error = file.error or error
                raise
            file.digest.update(data)
            return len(data)

        return write

    def _around(self, function: Callable, name: str) -> Callable:
        def wrapped(*args, **kwargs):
            self.reach(f'before {name}')
            result = function(*args, **kwargs)
            self.reach(f'after {name}')
            return result

        return wrapped

    def reach(self, where: str) -> None:
        self.seen.append(where)
        if len(self.seen) - 1 == self.at:
            self.act()


def killed(function: Callable[[], None]) -> bool:
    """Run a function in a fork of this process; return whether it ended with :func:`die`."""
    child = os.fork()
    if not child:
        logging.disable()
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), f'the child failed with {code}'
    return code == KILLED


def die() -> None:
    """End without any cleanup, as after kill -9."""
    os._exit(KILLED)
