"""What compiling a model cost."""

import time

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch._dynamo.utils import counters


@HOOKS.register_module()
class CompileHook(Hook):
    """Logs what compiling cost, which is in the first step, and every later compilation, which should not be."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.begin: float | None = None
        self.graphs = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.begin is None:
            self.begin, self.graphs = time.perf_counter(), 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        graphs = counters['stats']['unique_graphs']
        if graphs == self.graphs:
            return
        if self.graphs == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            runner.logger.info(
                f'compiled: the first step took {time.perf_counter() - self.begin:.1f} s ({graphs} graphs)'
            )
        else:
            runner.logger.warning(
                f'iteration {runner.iter + 1}: compiled again ({graphs - self.graphs} graphs): a '
                'size or a setting has changed'
            )
        self.graphs = graphs
