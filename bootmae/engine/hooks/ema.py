"""Schedules of BootMAE: the EMA of the momentum encoder and the weight of the feature loss."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...models.schedules import EMA_BASE, ema_decay, feature_weight
from ..unwrap import bare_model


@HOOKS.register_module()
class BootMAEHook(Hook):
    """Sets feature weight and EMA decay of each epoch, and updates the momentum encoder after each optimizer step.

    Args:
        ema: (epoch, decay) points of the schedule, see :func:`ema_decay`.
        ramp: fraction of all epochs in which the feature weight rises to its peak.
        peak: feature weight after the ramp; 0 trains without the feature loss.
        total_epochs: number of epochs that ``ramp`` refers to; by default those of the run.
    """

    priority = 'ABOVE_NORMAL'  # before any hook that reads or saves the weights

    def __init__(
        self,
        ema: Sequence[tuple[float, float]] = EMA_BASE,
        ramp: float = 0.25,
        peak: float = 1.0,
        total_epochs: int | None = None,
    ):
        if peak < 0:
            raise ValueError(f'BootMAEHook peak={peak}: give a weight of the feature loss of at least 0')
        self.ema, self.ramp, self.peak, self.total_epochs = ema, ramp, peak, total_epochs
        self.decay: float | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        weight = self.peak * feature_weight(runner.epoch, self.total_epochs or runner.max_epochs, self.ramp)
        self.decay = ema_decay(runner.epoch, self.ema)
        bare_model(runner).feature_weight.fill_(weight)
        runner.message_hub.update_scalar('train/ema_decay', self.decay)
        runner.message_hub.update_scalar('train/feature_weight', weight)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        if runner.optim_wrapper.should_update():  # an optimizer step was made, not only an accumulation
            bare_model(runner).update_momentum(self.decay)
