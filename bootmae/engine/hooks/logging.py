"""Logs losses averaged over all ranks without waiting for the GPU."""

import torch
from mmengine import dist
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class AsyncLoggingHook(RuntimeInfoHook):
    """Averages losses over all ranks and copies them to the host only when they are logged or saved.

    mmengine's ``RuntimeInfoHook`` logs the losses of rank 0 and reads them in every step, so the host waits for the GPU
    and cannot prepare the next step meanwhile. The logged and saved values have the same form.
    """

    priority = 'VERY_HIGH'

    def __init__(self):
        self.pending: list[tuple[tuple[str, ...], torch.Tensor]] = []  # names and values (K,) of each step

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
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
        """Return the iterations between two log lines; 1 for a run without a ``LoggerHook``."""
        return min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), default=1)

    def flush_logs(self, runner: Runner) -> None:
        """Move pending losses to the message hub, for the log and checkpoints. Waits for the GPU."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        numbers = iter(torch.cat([values for _, values in pending]).tolist())
        for names, _ in pending:
            for name in names:
                runner.message_hub.update_scalar(f'train/{name}', next(numbers))

    def before_val(self, runner: Runner) -> None:
        self.flush_logs(runner)
        super().before_val(runner)

    def after_train(self, runner: Runner) -> None:
        self.flush_logs(runner)
        super().after_train(runner)
