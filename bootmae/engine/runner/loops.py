"""Training loops that resume from any step bit for bit, thanks to seeds that depend only on the position."""

from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.dist import broadcast, get_rank
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import Dataset

from ...data.device import DeviceStage
from ...data.seeding import seed_step
from ...distributed.exits import Progress
from ...text import count_of


def device_stage(cfg: Config, samples: Dataset) -> DeviceStage | None:
    """Build the stage that brings batches to the GPU, where ``reader='gpu'`` decodes files; None if nothing is to do.

    Without a GPU a run with ``reader='gpu'`` can still be replayed: the files are then decoded on the CPU.
    """
    options, gpu = cfg.get('device_stage'), torch.cuda.is_available()
    if options is None:
        return DeviceStage(size=0, samples=samples) if gpu else None
    return DeviceStage(**(dict(options) if gpu else dict(options, device='cpu')), samples=samples)


class _Seeded:
    """Mixin: (seed, iteration, rank) seed each iteration, and (seed, epoch, index) each sample.

    The training loader needs ``SeededSamples``, ``StreamSampler`` and ``ResumableBatches``, see
    :func:`bootmae.config.run_defaults.make_resumable`.
    """

    def begin(self) -> None:
        """Set the seed of samples, their order and steps at the start of training."""
        # With randomness=dict(diff_rank_seed=True) each rank has its own seed; all use that of rank 0.
        # A resumed run already has the seed of its checkpoint.
        seed = torch.tensor(self.runner.seed)
        broadcast(seed, src=0)
        self.seed = self.dataloader.dataset.seed = self.dataloader.batch_sampler.sampler.seed = int(seed)
        self.stage = device_stage(self.runner.cfg, self.dataloader.dataset)
        self.runner.call_hook('before_train')

    def batches(self) -> Iterator[dict]:
        """Iterate over the loader's batches; they reach the device during the previous step, see ``DeviceStage``."""
        return iter(self.dataloader) if self.stage is None else map(self.stage, self.dataloader)

    def run_iter(self, *args) -> None:
        """Train one batch."""
        seed_step(self.seed, self._iter, get_rank())
        super().run_iter(*args)
        Progress.trained = True

    def validate(self, done: int, last: bool) -> None:
        """Run the validation if it is due after ``done`` epochs or iterations."""
        self._decide_current_val_interval()
        if self.runner.val_loop is not None and done >= self.val_begin and (last or done % self.val_interval == 0):
            self.runner.val_loop.run()


@LOOPS.register_module()
class EpochLoop(_Seeded, EpochBasedTrainLoop):
    """Trains epochs. A resumed run may start in the middle of one.

    A resumed run first repeats the validation that was due at its checkpoint, since it may have been interrupted.
    """

    def run(self) -> nn.Module:
        """Train from the current position to the end.

        Raises:
            ValueError: if the checkpoint's epoch and iteration do not fit the length of an epoch.
        """
        length = len(self.dataloader)
        if not self._epoch * length <= self._iter <= (self._epoch + 1) * length:
            raise ValueError(
                f'the checkpoint is at epoch {self._epoch}, iteration {self._iter}, but an epoch now has '
                f'{count_of(length, "iteration")}: resume with the data set and the batch size of the original run'
            )
        self.begin()
        if self._epoch and self._iter == self._epoch * length:
            self.validate(self._epoch, self._epoch == self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self.validate(self._epoch, self._epoch == self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train an epoch, or the rest of a resumed one."""
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.batch_sampler.sampler.set_epoch(self._epoch)
        self.dataloader.batch_sampler.skip = done
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.batches(), done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class IterLoop(_Seeded, IterBasedTrainLoop):
    """Trains iterations on an endless stream of samples. A resumed run repeats a validation as in ``EpochLoop``."""

    def run(self) -> nn.Module:
        """Train from the current position to the end."""
        self.begin()
        self.runner.call_hook('before_train_epoch')
        if self._iter:
            self.validate(self._iter, self._iter == self._max_iters)
        self.dataloader.batch_sampler.skip = self._iter
        batches = self.batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self.validate(self._iter, self._iter == self._max_iters)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model
