"""The learning rate schedule of all recipes: linear warm-up from zero, then half a cosine to a floor."""

import math

from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS


def warmup_cosine(step: int, warmup: int, total: int, floor: float, endpoint: bool = True) -> float:
    """Return the factor on the peak learning rate at a step (docs/method.md).

    Args:
        step: from 0 to total - 1.
        warmup: number of warm-up steps; the first has factor 0.
        total: number of all steps.
        floor: factor that the cosine reaches at ``total``.
        endpoint: whether the last step of the warm-up already has factor 1 (BootMAE), or only the step after it (MAE
            and all linear probes).
    """
    if step < warmup:
        return step / max(warmup - endpoint, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def encoder_ramp(step: int, start: int, warmup: int) -> float:
    """Return the further factor of an encoder that starts later: 0 before ``start``, then linear to 1."""
    return 0.0 if step < start else min((step - start) / max(warmup, 1), 1.0)


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """Scales the learning rate of each parameter group by :func:`warmup_cosine`.

    In a config, in epochs: ``dict(type='WarmupCosineLR', warmup=40, end=801, min_lr=1e-4, by_epoch=True,
    convert_to_iter_based=True)``.

    Args:
        optimizer: the optimizer or its wrapper.
        warmup: length of the warm-up.
        end: length of the whole schedule.
        encoder_start: length of a first phase in which the learning rate of the encoder is zero. Its own warm-up, as
            long as ``warmup``, follows. It needs ``paramwise_cfg=dict(separate_encoder=True)``.
        min_lr: floor of a group with the optimizer's learning rate; layer-wise lr decay scales it, too.
        endpoint: whether the last step of the warm-up already has the peak, see :func:`warmup_cosine`.
        accumulation: iterations per optimizer step. The schedule counts optimizer steps, so that accumulation does not
            change it.
        by_epoch: of the base class.
        last_step: of the base class.
        verbose: of the base class.
    """

    def __init__(
        self,
        optimizer,
        warmup: int,
        end: int,
        min_lr: float = 0.0,
        endpoint: bool = True,
        accumulation: int = 1,
        encoder_start: int = 0,
        by_epoch: bool = True,
        last_step: int = -1,
        verbose: bool = False,
    ):
        peak = getattr(optimizer, 'optimizer', optimizer).defaults['lr']
        if not peak > 0:
            raise ValueError(f'the learning rate {peak} is not positive (optim_wrapper.optimizer.lr)')
        if not 0 <= min_lr <= peak:
            raise ValueError(f'min_lr={min_lr} is not within 0..{peak}, the peak learning rate: lower min_lr')
        if not 0 <= warmup < end < INF:
            raise ValueError(f'warmup={warmup}, end={end}: the warm-up must be shorter than the whole schedule')
        if not 0 <= encoder_start <= end - warmup:
            raise ValueError(
                f'encoder_start={encoder_start}, warmup={warmup}, end={end}: the encoder must start and warm up before '
                'the end'
            )
        if encoder_start and not any(group.get('encoder') for group in optimizer.param_groups):
            raise ValueError(
                f'WarmupCosineLR encoder_start={encoder_start} finds no parameters of the encoder: set '
                'optim_wrapper.paramwise_cfg.separate_encoder=True (ViTOptimWrapperConstructor)'
            )
        self.warmup, self.total = warmup // accumulation, end // accumulation
        self.encoder_start = encoder_start // accumulation
        self.floor, self.endpoint, self.accumulation = min_lr / peak, endpoint, accumulation
        super().__init__(optimizer, 'lr', begin=0, end=end, last_step=last_step, by_epoch=by_epoch, verbose=verbose)

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args,
        warmup: float,
        end: float,
        epoch_length: int,
        encoder_start: float = 0,
        by_epoch: bool = True,
        **kwargs,
    ) -> 'WarmupCosineLR':
        """Build a schedule in iterations from numbers of epochs; mmengine's runner calls it."""
        if not by_epoch:
            raise ValueError('convert_to_iter_based needs by_epoch=True')
        warmup, end, encoder_start = (int(number * epoch_length) for number in (warmup, end, encoder_start))
        return cls(*args, warmup=warmup, end=end, encoder_start=encoder_start, by_epoch=False, **kwargs)

    def load_state_dict(self, state_dict: dict) -> None:
        """Take the position from the state, but keep the config's length, shape and accumulation."""
        names = ('end', 'warmup', 'total', 'floor', 'endpoint', 'accumulation', 'encoder_start')
        own = {name: getattr(self, name) for name in names}
        place = min(state_dict['_global_step'], self.end - 1)
        super().load_state_dict(state_dict | own | dict(last_step=place))

    def _get_value(self) -> list[float]:
        step = min(self.last_step // self.accumulation, self.total - 1)
        factor = warmup_cosine(step, self.warmup, self.total, self.floor, self.endpoint)
        late = factor * encoder_ramp(step, self.encoder_start, self.warmup) if self.encoder_start else factor
        groups = self.optimizer.param_groups  # the wrapper's may end with one that only the log reads
        return [base * (late if group.get('encoder') else factor) for base, group in zip(self.base_values, groups)]
