"""Losses over all ranks, logged without waiting for the GPU."""

import torch
from mmengine import dist
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class AsyncLoggingHook(RuntimeInfoHook):
    """mmengine's, with losses averaged over all ranks, and brought to the host only when they are logged or saved.

    mmengine logs rank 0 alone, and reads each loss in each step, for which the host waits until the GPU has done the
    step: nothing of the next one is then prepared beside it. What is logged and saved in the end is the same.
    """

    priority = 'VERY_HIGH'

    def __init__(self):
        self.pending: list[tuple[tuple[str, ...], torch.Tensor]] = []  # of each step: names, their values (K,)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        logged, grad_norm = dict(outputs or {}), getattr(runner.optim_wrapper, 'grad_norm', None)
        if grad_norm is not None:
            logged['grad_norm'] = grad_norm
        if logged:
            values = torch.stack([value.detach().reshape(()).float() for value in logged.values()])
            dist.all_reduce(values, 'mean')
            self.pending.append((tuple(logged), values))
        if self.every_n_inner_iters(batch_idx, self.interval(runner)) or self.end_of_epoch(
            runner.train_dataloader, batch_idx
        ):
            self.flush_logs(runner)

    @staticmethod
    def interval(runner) -> int:
        """Iterations between two lines of the log; 1 where no hook of the usual kind writes them."""
        return min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), default=1)

    def flush_logs(self, runner) -> None:
        """Bring what is pending to the message hub, where logs and checkpoints look for it. Waits for the GPU."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        numbers = iter(torch.cat([values for _, values in pending]).tolist())
        for names, _ in pending:
            for name in names:
                runner.message_hub.update_scalar(f'train/{name}', next(numbers))

    def before_val(self, runner) -> None:
        self.flush_logs(runner)
        super().before_val(runner)

    def after_train(self, runner) -> None:
        self.flush_logs(runner)
        super().after_train(runner)
