"""The momentum encoder of BootMAE in a run: its EMA, and the weight of the loss towards it."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...models.schedules import EMA_BASE, ema_decay, feature_weight
from .provenance import bare_model


@HOOKS.register_module()
class BootMAEHook(Hook):
    """Sets the feature weight and the EMA decay of each epoch, and moves the momentum encoder after each update.

    Args:
        ema: (epoch, decay) points of :func:`ema_decay`.
        ramp: share of all epochs over which the feature weight rises to its peak.
        peak: feature weight after the ramp; 0 trains without the momentum target.
        total_epochs: epochs that the ramp is a share of; default: the run's.
    """

    priority = 'ABOVE_NORMAL'  # before anything that looks at or saves the weights

    def __init__(
        self,
        ema: Sequence[tuple[float, float]] = EMA_BASE,
        ramp: float = 0.25,
        peak: float = 1.0,
        total_epochs: int | None = None,
    ):
        if peak < 0:
            raise ValueError(f'peak={peak}: the weight of the feature loss is 0 or more')
        self.ema, self.ramp, self.peak, self.total_epochs = ema, ramp, peak, total_epochs
        self.decay: float | None = None

    def before_train_epoch(self, runner) -> None:
        weight = self.peak * feature_weight(runner.epoch, self.total_epochs or runner.max_epochs, self.ramp)
        self.decay = ema_decay(runner.epoch, self.ema)
        bare_model(runner).feature_weight.fill_(weight)
        runner.message_hub.update_scalar('train/ema_decay', self.decay)
        runner.message_hub.update_scalar('train/feature_weight', weight)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.optim_wrapper.should_update():  # an update has just been made, not a mere accumulation
            bare_model(runner).update_momentum(self.decay)
