"""Saving a run: the new file is whole before an old one goes, and no failed save ends a run that can go on."""

import copy
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine import dist
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ...checkpoints.resume import STEP
from ...files import remove_stale, write_file
from ..runner.state import cap_histories, history_length

EVERY = 100  # iterations between two looks at their lengths


def checkpoint_folder(runner) -> Path:
    """Where the run's checkpoints are: its work directory, unless its hook has an ``out_dir`` of its own."""
    folders = [hook.folder(runner) for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)]
    return folders[0] if folders else Path(runner.work_dir)


class _Later:
    """A file backend that deletes nothing yet, but keeps a list."""

    def __init__(self, backend):
        self.backend, self.old = backend, []

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path: str | Path) -> None:
        self.old.append(Path(path))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, which deletes the old file before the new one is whole; this one does so afterwards.

    Beside the regular files it saves ``step_N.pth`` every few minutes, of which the newest is kept until a newer file
    of any kind is safe. A save that fails (a full disk) is logged, leaves the old files, and the run goes on; only the
    last one of a run raises. Files are local.

    Args:
        minutes: between two saves, at the end of an optimizer step; 0 for none. Rank 0's clock decides.
        kwargs: of the base class.
    """

    def __init__(self, *args, minutes: float = 20, **kwargs):
        super().__init__(*args, **kwargs)
        if minutes < 0:
            raise ValueError(f'minutes={minutes}: give the minutes between two saves, or 0 for none')
        if self.file_client_args or self.backend_args:
            raise ValueError(
                'checkpoints are written to local folders: take file_client_args and backend_args out of '
                'default_hooks.checkpoint, and copy the files elsewhere afterwards'
            )
        self.given_dir, self.minutes, self.saved = self.out_dir, minutes, time.monotonic()
        self.waits = False  # a regular save waits for the optimizer step to be whole

    def before_train(self, runner) -> None:
        keep, info = self.max_keep_ckpts, runner.message_hub.runtime_info
        ids = list(info.get('keep_ckpt_ids', []))
        if 0 < keep < len(ids):  # the base class would delete them now; here they go when a new file is safe
            info['keep_ckpt_ids'] = ids[-keep:]
        super().before_train(runner)
        self.file_backend = _Later(self.file_backend)
        self.file_backend.old += [self.path_of(step) for step in (ids[:-keep] if keep > 0 else [])]
        self.saved = time.monotonic()
        if dist.is_main_process():
            Path(self.out_dir).mkdir(parents=True, exist_ok=True)
            for path in remove_stale(self.out_dir):
                runner.logger.info(f'deleted {path}, left half-written by a process that was killed')

    def folder(self, runner) -> Path:
        """Where it writes, also before training."""
        work_dir = Path(runner.work_dir)
        return work_dir if self.given_dir in (None, runner.work_dir) else Path(self.given_dir, work_dir.name)

    def path_of(self, step: int) -> Path:
        return Path(self.out_dir, self.filename_tmpl.format(step))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, EVERY):
            cap_histories(runner.message_hub, history_length(runner))
        whole = runner.optim_wrapper.should_update()  # an update has just been made, not a mere accumulation
        if self.waits and whole:
            self._save_checkpoint(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._is_due() and whole:
            with self._lenient(runner):
                self.save_now(runner)

    def _is_due(self) -> bool:
        return dist.is_main_process() and 0 < self.minutes * 60 <= time.monotonic() - self.saved

    def save_now(self, runner, counted: bool = False) -> str:
        """Save the run as it is, after a whole optimizer step, as ``step_N.pth``; gives its path.

        Call it after the schedulers have moved: in ``after_train_iter`` at a priority below ``LOW``. Rank 0 writes.
        After the last iteration of an epoch the file says so: its epoch is the one whose iterations are all done.

        Args:
            runner: of the run.
            counted: ``runner.iter`` counts the last iteration already, as in validation and between epochs; it does
                not yet in ``after_train_iter``.

        Raises:
            OSError: if it could not be written; older files are what they were.
        """
        step = runner.iter + (not counted)
        name = f'step_{step}.pth'
        with self._transaction(runner):
            self._write(runner, name, dict(epoch=runner.epoch, iter=step))
        return str(Path(self.out_dir, name))

    def _save_checkpoint(self, runner) -> None:
        """A regular save; a failure of the run's last one is an error."""
        last = self.is_last_train_epoch(runner) if self.by_epoch else self.is_last_train_iter(runner)
        self.waits = not (self.by_epoch or last or runner.optim_wrapper.should_update())
        if self.waits:
            return
        with self._lenient(runner, last):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        with self._lenient(runner), self._transaction(runner):
            super()._save_best_checkpoint(runner, metrics)
            self._delete_old(runner, 'best_')

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """The base class's, in another order: the file, then the note of it, then the deletions."""
        with self._transaction(runner):
            if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    self.file_backend.remove(self.path_of(self.keep_ckpt_ids.popleft()))
                self.keep_ckpt_ids.append(step)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            self._write(runner, self.path_of(step).name, meta)

    def _write(self, runner, name: str, meta: dict) -> None:
        """Write one file, note it as the last one, delete what is not needed any more."""
        regular = STEP.fullmatch(name) is None
        path = Path(self.out_dir, name)
        if regular:
            self.last_ckpt = str(path)
        runner.message_hub.update_info('last_ckpt', str(path))
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer or not regular,
            save_param_scheduler=self.save_param_scheduler or not regular,
            meta=meta,
            by_epoch=self.by_epoch,
            **self.args,
        )
        self.saved = time.monotonic()
        if not dist.is_main_process():
            self.file_backend.old.clear()
            return
        write_file(Path(runner.work_dir, 'last_checkpoint'), lambda file: file.write_text(str(path)))
        self._delete_old(runner)
        for old in Path(self.out_dir).glob('step_*.pth'):
            if (match := STEP.fullmatch(old.name)) and old != path and int(match[1]) <= meta['iter']:
                self._delete(runner, old)

    def _delete_old(self, runner, prefix: str = '') -> None:
        for path in [path for path in self.file_backend.old if path.name.startswith(prefix)]:
            self._delete(runner, path)
            self.file_backend.old.remove(path)

    @staticmethod
    def _delete(runner, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            runner.logger.warning(f'{path} is not needed any more and could not be deleted: {error}')

    @contextmanager
    def _transaction(self, runner) -> Iterator[None]:
        """A save that fails leaves the list of files, and of files to delete, as it was."""
        info, names = runner.message_hub.runtime_info, ('last_ckpt', 'best_ckpt_path', 'best_ckpt_path_dict')
        noted = {
            key: copy.copy(value)
            for key, value in info.items()
            if key.startswith(('best_', 'keep_ckpt_ids', 'last_ckpt'))
        }
        ours = {name: copy.copy(getattr(self, name)) for name in names if hasattr(self, name)}
        ids, old = list(getattr(self, 'keep_ckpt_ids', [])), list(self.file_backend.old)
        try:
            yield
        except Exception:
            for key in [key for key in info if key.startswith(('best_', 'keep_ckpt_ids', 'last_ckpt'))]:
                del info[key]
            info.update(noted)
            self.__dict__.update(ours)
            if self.max_keep_ckpts > 0:
                self.keep_ckpt_ids = deque(ids, self.max_keep_ckpts)
            self.file_backend.old[:] = old
            raise

    @contextmanager
    def _lenient(self, runner, last: bool = False) -> Iterator[None]:
        """A failed save within is logged, and tried again after the usual time; the last one of a run raises."""
        try:
            yield
        except OSError as error:
            if last:
                raise
            self.saved = time.monotonic()
            runner.logger.log(
                logging.ERROR,
                f'CHECKPOINT NOT SAVED: {error}. The run goes on; older checkpoints are '
                'what they were. Make room, or the work since then is lost if the run is killed.',
            )
