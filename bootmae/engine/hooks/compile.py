"""Logs the time of compilation."""

import time

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch._dynamo.utils import counters

from ...text import count_of


@HOOKS.register_module()
class CompileHook(Hook):
    """Logs how long the first step took to compile, and warns of every later compilation."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.begin: float | None = None
        self.graphs = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if self.begin is None:
            self.begin, self.graphs = time.perf_counter(), 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        graphs = counters['stats']['unique_graphs']
        if graphs == self.graphs:
            return
        if self.graphs == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            runner.logger.info(
                f'compiled: the first step took {time.perf_counter() - self.begin:.1f} s ({count_of(graphs, "graph")})'
            )
        else:
            runner.logger.warning(
                f'iteration {runner.iter + 1}: compiled again ({count_of(graphs - self.graphs, "graph")}): a '
                'size or an option has changed'
            )
        self.graphs = graphs
