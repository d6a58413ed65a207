"""Stops a run in good order when a signal asks for it."""

import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...distributed.exits import Requeue
from ...distributed.signals import StopSignals, shield_workers
from ..runner.stop import save_before_stop


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Saves the run and ends it with :class:`Requeue` after SIGTERM, SIGUSR1 or Ctrl-C to any rank.

    All ranks finish the optimizer step, then rank 0 saves. A signal during validation saves the state before it. The
    other ranks learn of a signal one step later, so that no step waits.
    """

    priority = 'LOWEST'  # after the momentum encoder, the schedules and the step's own checkpoint

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.active = False  # between the start of training and its end
        self.stopping = False

    def before_train(self, runner: Runner) -> None:
        self.signals.install()
        self.active, self.stopping = True, False
        runner.counters.register('stop')
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                shield_workers(loop.dataloader)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        if runner.counters.exchange('stop', self.signals.asked is not None):
            self.stopping = True
        if self.stopping and runner.optim_wrapper.should_update():  # an update has just been made
            runner.call_hook('before_stop')
            self._stop(runner)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: list | None = None
    ) -> None:
        if self.active and self.signals.asked is not None:
            self._stop(runner, validating=True)

    def after_train(self, runner: Runner) -> None:
        runner.counters.wait()  # gloo must not hold tensors when Python ends
        self.close()

    def close(self) -> None:
        """Restore the signal handlers; also called for runs that end with an exception."""
        self.signals.restore()
        self.active = False

    def _stop(self, runner: Runner, validating: bool = False) -> None:
        asked = self.signals.asked
        cause = 'Ctrl-C' if asked == signal.SIGINT else asked.name if asked else 'a signal to another process'
        path = save_before_stop(runner, cause, validating)
        self.close()
        raise Requeue(
            f'{cause}: saved {path or "nothing"}. To continue, start the same command again with --resume'
            if runner.rank == 0
            else f'rank {runner.rank} stops with the others ({cause})'
        )
