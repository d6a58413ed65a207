"""Ends a run in good order: when a signal asks for it, and when too many images are unreadable."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...distributed.counters import AsyncCounters
from ...distributed.exits import BadDataError, Requeue, RunStopped
from ...distributed.signals import StopSignals, shield_workers

BAD_IMAGES = 'bad_images.txt'  # in the work directory: path, tab, reason


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Watches for SIGTERM, SIGUSR1 and unreadable images, on all ranks together.

    After a signal to any rank, all finish the optimizer step, rank 0 saves, and the run ends with :class:`Requeue`.
    A signal during validation saves the state before it. Images that the data set reports as unreadable
    (:meth:`SeededSamples.take_reports`) are logged once and listed in ``bad_images.txt``, which a resumed run goes on
    counting; over the budget, the run is saved and ends with :class:`BadDataError`. What ranks tell each other costs
    no waiting and is known one step later.

    Args:
        budget: share of the training images that may be unreadable; one may always be.
    """

    priority = 'LOWEST'  # after the momentum encoder, the schedules and the step's own checkpoint

    def __init__(self, budget: float = 1e-4):
        if not 0 <= budget <= 1:
            raise ValueError(f'PreemptionHook budget={budget}: give the share of unreadable images to allow, 0 to 1')
        self.budget, self.signals = budget, StopSignals()
        self.counters: AsyncCounters | None = None
        self.bad: dict[str, str] = {}  # path: reason, of all ranks, the same on all
        self.unshared: list[tuple[str, str]] = []
        self.ending: RunStopped | None = None

    def before_train(self, runner) -> None:
        self.signals.install()
        self.counters, self.ending = AsyncCounters(('stop', 'bad')), None
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                shield_workers(loop.dataloader)
        self.bad = self.counters.broadcast(self._earlier(runner) if runner.rank == 0 else None)
        self._judge(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        new = take_reports(runner)
        self.unshared += new
        sums = self.counters.exchange(stop=self.signals.asked is not None, bad=len(new))
        if sums['bad']:
            self._share(runner)
        if sums['stop'] and self.ending is None:
            self.ending = Requeue()
        if self.ending is not None and runner.optim_wrapper.should_update():  # an update has just been made
            self._share(runner)
            self._end(runner, counted=False)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.signals.asked is not None and self.counters is not None:
            self.ending = Requeue()
            self._end(runner, counted=True)

    def after_train(self, runner) -> None:
        self.counters.last()  # gloo must not hold tensors when Python ends
        self.unshared += take_reports(runner)
        self._share(runner)
        self.close()
        if isinstance(self.ending, BadDataError):
            raise self.ending

    def close(self) -> None:
        """Take the signal handlers away again; also for runs that end by another exception."""
        self.signals.restore()
        self.counters = None

    def _end(self, runner, counted: bool) -> None:
        """Save and leave; ``counted``: during validation, where this rank may be alone."""
        saved = save_now(runner, counted) if runner.rank == 0 or not counted else ('', '')
        path, error = saved if counted else self.counters.broadcast(saved)  # none leaves before the file is there
        asked, ending = self.signals.asked, self.ending
        self.close()
        cause = asked.name if asked is not None else 'a signal to another process'
        if error:
            raise RunStopped(
                f'{cause if isinstance(ending, Requeue) else ending}\nThe run could not be saved: '
                f'{error}. Older checkpoints are what they were; make room and go on with --resume'
            )
        if isinstance(ending, Requeue):
            ending = Requeue(
                f'{cause}: saved {path or "nothing"}. To go on, start the same command again with --resume'
                if runner.rank == 0
                else f'rank {runner.rank} stops with the others ({cause})'
            )
        raise ending

    def _earlier(self, runner) -> dict[str, str]:
        """Unreadable images of the run so far; a run from the beginning starts a new list."""
        path = Path(runner.work_dir) / BAD_IMAGES
        if not path.is_file():
            return {}
        if not runner._resume:
            path.unlink()
            return {}
        lines = path.read_text().splitlines()
        return dict(line.split('\t', 1) for line in lines if '\t' in line)

    def _share(self, runner) -> None:
        """Tell all ranks of this one's unreadable images, and hear of theirs; all must call it in the same step."""
        reports = [report for rank in self.counters.gather(self.unshared) for report in rank]
        self.unshared = []
        new = {path: ' '.join(reason.split()) for path, reason in reports if path not in self.bad}
        self.bad |= new
        if new and runner.rank == 0:
            for path, reason in new.items():
                runner.logger.warning(f'{path} cannot be read and is replaced by another image: {reason}')
            with (Path(runner.work_dir) / BAD_IMAGES).open('a') as file:
                file.writelines(f'{path}\t{reason}\n' for path, reason in new.items())
        self._judge(runner)

    def _judge(self, runner) -> None:
        """Mark the run for its end if there are more unreadable images than the budget allows."""
        images = len(runner.train_loop.dataloader.dataset)
        allowed = max(1, int(self.budget * images))
        if len(self.bad) <= allowed or isinstance(self.ending, BadDataError):
            return
        if runner.rank:
            self.ending = BadDataError(f'rank {runner.rank} stops with the others: too many unreadable images')
            return
        names = ''.join(f'\n  {path}: {reason}' for path, reason in self.bad.items())
        self.ending = BadDataError(
            f'{len(self.bad)} of {images} images cannot be read, {allowed} may be (budget {self.budget:g}):{names}\n'
            'Mend or remove them (tools/verify_data.py finds all), or allow more with --cfg-options '
            f'default_hooks.preemption.budget={10 * max(self.budget, 1 / max(images, 1)):g}; then remove '
            f'{Path(runner.work_dir) / BAD_IMAGES} and go on with --resume'
        )


def take_reports(runner) -> list[tuple[str, str]]:
    """Path and reason of the unreadable images that this rank's data set has met since the last call."""
    take = getattr(runner.train_loop.dataloader.dataset, 'take_reports', None)
    return take() if take is not None else []


def save_now(runner, counted: bool) -> tuple[str, str]:
    """Save by the checkpoint hook's ``save_now``, if there is one: the path, and what went wrong.

    ``counted``: the current iteration is in ``runner.iter`` already, as during validation.
    """
    for hook in runner.hooks:
        if hasattr(hook, 'save_now'):
            try:
                return hook.save_now(runner, counted=counted), ''
            except OSError as error:
                return '', str(error)
    return '', ''
