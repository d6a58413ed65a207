"""Lists unreadable images and stops a run that meets too many."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...distributed.exits import BadDataError
from ...text import count_of
from ..runner.records import append_text, optional
from ..runner.stop import save_before_stop

BAD_IMAGES = 'bad_images.txt'  # in the work directory; lines of path, tab, reason


@HOOKS.register_module()
class BadImagesHook(Hook):
    """Logs each unreadable image once, lists it in ``bad_images.txt``, and stops the run above a budget.

    The data set replaces unreadable images and reports them (:meth:`SeededSamples.take_reports`). Images of all ranks
    count, and a resumed run continues the list. Above the budget the run is saved and ends with :class:`BadDataError`.
    The ranks tell each other how many they met one step later, so that no step waits.

    Args:
        budget: share of the training images that may be unreadable. One image is always allowed.
    """

    priority = 95  # after the step's own checkpoint (VERY_LOW), before PreemptionHook (LOWEST)

    def __init__(self, budget: float = 1e-4):
        if not 0 <= budget <= 1:
            raise ValueError(
                f'BadImagesHook budget={budget}: give the share of images that may be unreadable, from 0 to 1'
            )
        self.budget = budget
        self.bad: dict[str, str] = {}  # reason by path, of all ranks and the same on all
        self.unshared: list[tuple[str, str]] = []
        self.ending: BadDataError | None = None

    def before_train(self, runner: Runner) -> None:
        self.ending = None
        runner.counters.register('bad')
        self.bad = runner.counters.broadcast(self._earlier(runner) if runner.rank == 0 else None)
        self._check_budget(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        new = take_reports(runner)
        self.unshared += new
        if runner.counters.exchange('bad', len(new)):
            self._share(runner)
        if self.ending is not None and runner.optim_wrapper.should_update():  # an update has just been made
            self.before_stop(runner)

    def before_stop(self, runner: Runner) -> None:
        """Share the reports of the last steps; stop the run here if it is over the budget."""
        self._share(runner)
        if self.ending is not None:
            save_before_stop(runner, str(self.ending))
            raise self.ending

    def after_train(self, runner: Runner) -> None:
        runner.counters.wait()  # gloo must not hold tensors when Python ends
        self.unshared += take_reports(runner)
        self._share(runner)
        if self.ending is not None:
            raise self.ending

    def _earlier(self, runner: Runner) -> dict[str, str]:
        """Return the unreadable images that a resumed run has met so far. A new run starts with an empty list."""
        path = Path(runner.work_dir, BAD_IMAGES)
        if not path.is_file():
            return {}
        if not runner._resume:
            path.unlink()
            return {}
        return dict(line.split('\t', 1) for line in path.read_text(encoding='utf-8').splitlines() if '\t' in line)

    def _share(self, runner: Runner) -> None:
        """Exchange the reports of all ranks, and log the new ones. All ranks must call it in the same step."""
        reports = [report for rank in runner.counters.gather(self.unshared) for report in rank]
        self.unshared = []
        new = {path: ' '.join(reason.split()) for path, reason in reports if path not in self.bad}
        self.bad |= new
        if new and runner.rank == 0:
            for name, reason in new.items():
                runner.logger.warning(f'{name} cannot be read and is replaced by another image: {reason}')
            path = Path(runner.work_dir, BAD_IMAGES)
            with optional(path):
                append_text(path, ''.join(f'{name}\t{reason}\n' for name, reason in new.items()))
        self._check_budget(runner)

    def _check_budget(self, runner: Runner) -> None:
        """Set ``ending`` if more images are unreadable than the budget allows."""
        images = len(runner.train_loop.dataloader.dataset)
        allowed = max(1, int(self.budget * images))
        if len(self.bad) <= allowed or self.ending is not None:
            return
        if runner.rank:
            self.ending = BadDataError(f'rank {runner.rank} stops with the others: too many unreadable images')
            return
        names = ''.join(f'\n  {path}: {reason}' for path, reason in self.bad.items())
        self.ending = BadDataError(
            f'{len(self.bad)} of {count_of(images, "image")} cannot be read; at most {allowed} may be unreadable '
            f'(budget {self.budget:g}):{names}\n'
            'Repair or remove them (tools/verify_data.py finds all), or allow more with --cfg-options '
            f'default_hooks.bad_images.budget={10 * max(self.budget, 1 / max(images, 1)):g}. Then delete '
            f'{Path(runner.work_dir, BAD_IMAGES)} and continue with --resume'
        )


def take_reports(runner: Runner) -> list[tuple[str, str]]:
    """Return path and reason of the unreadable images that this rank has met since the last call."""
    take = getattr(runner.train_loop.dataloader.dataset, 'take_reports', None)
    return take() if take is not None else []
