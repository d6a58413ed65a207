"""Saves checkpoints: an old file is deleted after the new one is complete, and a failed save does not end the run."""

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
from mmengine.runner import Runner

from ...checkpoints.resume import STEP
from ...files import remove_stale, write_file
from ..runner.state import cap_histories, history_length

CAP_INTERVAL = 100  # iterations between two calls of cap_histories


def checkpoint_folder(runner: Runner) -> Path:
    """Return the folder of the run's checkpoints: its work directory, unless the hook has an ``out_dir``."""
    folders = [hook.folder(runner) for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)]
    return folders[0] if folders else Path(runner.work_dir)


def folder_in(work_dir: str, out_dir: str | None) -> Path:
    """Return the folder of the checkpoints, given the work directory and the hook's ``out_dir``."""
    return Path(work_dir) if out_dir in (None, work_dir) else Path(out_dir, Path(work_dir).name)


class _DeferredRemoval:
    """A file backend that lists files in ``old`` instead of removing them, and sees only those of a folder.

    A run that continues another one in a folder of its own knows the other's best file, which must stay.
    """

    def __init__(self, backend, folder: str | Path):
        self.backend, self.folder, self.old = backend, Path(folder).resolve(), []

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path: str | Path) -> None:
        self.old.append(Path(path))

    def isfile(self, path: str | Path) -> bool:
        return Path(path).parent.resolve() == self.folder and self.backend.isfile(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, but it deletes an old file only after the new one is complete.

    It also saves ``step_N.pth`` every few minutes and keeps the newest one until any newer file is complete. A failed
    save (usually a full disk) is logged, leaves the old files, and the run continues; only the final save raises an
    error. Files must be local.

    Args:
        args: of the base class.
        minutes: minutes between two ``step_N.pth``, by the clock of rank 0; 0 for none.
        kwargs: of the base class.
    """

    def __init__(self, *args, minutes: float = 20, **kwargs):
        super().__init__(*args, **kwargs)
        if minutes < 0:
            raise ValueError(f'SafeCheckpointHook minutes={minutes}: give the minutes between two saves, or 0 for none')
        if self.file_client_args or self.backend_args:
            raise ValueError(
                'checkpoints are written to local folders: remove file_client_args and backend_args from '
                'default_hooks.checkpoint, and copy the files elsewhere afterwards'
            )
        self.given_dir, self.minutes, self.saved = self.out_dir, minutes, time.monotonic()
        self.waits = False  # whether a regular save waits for the end of the optimizer step

    def before_train(self, runner: Runner) -> None:
        keep, info = self.max_keep_ckpts, runner.message_hub.runtime_info
        ids = list(info.get('keep_ckpt_ids', []))
        if 0 < keep < len(ids):  # the base class would delete files now; delete them after the next save
            info['keep_ckpt_ids'] = ids[-keep:]
        super().before_train(runner)
        self.file_backend = _DeferredRemoval(self.file_backend, self.out_dir)
        self.file_backend.old += [self.path_of(step) for step in (ids[:-keep] if keep > 0 else [])]
        self.saved = time.monotonic()
        if dist.is_main_process():
            Path(self.out_dir).mkdir(parents=True, exist_ok=True)
            for path in remove_stale(self.out_dir):
                runner.logger.info(f'deleted {path}, an incomplete file of a killed process')

    def folder(self, runner: Runner) -> Path:
        """Return the folder that it writes to; also valid before training."""
        return folder_in(runner.work_dir, self.given_dir)

    def path_of(self, step: int) -> Path:
        """Return the regular checkpoint of an epoch or iteration."""
        return Path(self.out_dir, self.filename_tmpl.format(step))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        if self.every_n_train_iters(runner, CAP_INTERVAL):
            cap_histories(runner.message_hub, history_length(runner))
        whole = runner.optim_wrapper.should_update()  # an optimizer step was made, not only an accumulation
        if self.waits and whole:
            self._save_checkpoint(runner)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._is_due() and whole:
            with self._lenient(runner):
                self.save_now(runner)

    def _is_due(self) -> bool:
        return dist.is_main_process() and 0 < self.minutes * 60 <= time.monotonic() - self.saved

    def save_now(self, runner: Runner, counted: bool = False) -> str:
        """Save the run after a whole optimizer step as ``step_N.pth`` and return its path. Rank 0 writes.

        Call it after the schedulers have stepped: in ``after_train_iter`` of a hook with a priority below ``LOW``.

        Args:
            runner: the run.
            counted: ``runner.iter`` already counts the last iteration, as in validation and between epochs, but not in
                ``after_train_iter``.

        Raises:
            OSError: if the file could not be written; older files are unchanged.
        """
        step = runner.iter + (not counted)
        name = f'step_{step}.pth'
        with self._transaction(runner):
            self._write(runner, name, dict(epoch=runner.epoch, iter=step))
        return str(Path(self.out_dir, name))

    def _save_checkpoint(self, runner: Runner) -> None:
        """Save a regular checkpoint. Only the final save of the run may raise an error."""
        last = self.is_last_train_epoch(runner) if self.by_epoch else self.is_last_train_iter(runner)
        self.waits = not (self.by_epoch or last or runner.optim_wrapper.should_update())
        if self.waits:
            return
        with self._lenient(runner, last):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._lenient(runner), self._transaction(runner):
            super()._save_best_checkpoint(runner, metrics)
            self._delete_old(runner, 'best_')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """As in the base class, but write the file first, then record it, then delete old ones."""
        with self._transaction(runner):
            if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    self.file_backend.remove(self.path_of(self.keep_ckpt_ids.popleft()))
                self.keep_ckpt_ids.append(step)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            self._write(runner, self.path_of(step).name, meta)

    def _write(self, runner: Runner, name: str, meta: dict) -> None:
        """Write one file, record it as the newest one, and delete files that are no longer needed."""
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

    def _delete_old(self, runner: Runner, prefix: str = '') -> None:
        """Delete the listed files whose names start with a prefix."""
        for path in [path for path in self.file_backend.old if path.name.startswith(prefix)]:
            self._delete(runner, path)
            self.file_backend.old.remove(path)

    @staticmethod
    def _delete(runner: Runner, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            runner.logger.warning(f'{path} is no longer needed but could not be deleted: {error}')

    @contextmanager
    def _transaction(self, runner: Runner) -> Iterator[None]:
        """Restore the records of files, and of files to delete, if the save fails."""
        info, names = runner.message_hub.runtime_info, ('last_ckpt', 'best_ckpt_path', 'best_ckpt_path_dict')
        recorded = {
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
            info.update(recorded)
            self.__dict__.update(ours)
            if self.max_keep_ckpts > 0:
                self.keep_ckpt_ids = deque(ids, self.max_keep_ckpts)
            self.file_backend.old[:] = old
            raise

    @contextmanager
    def _lenient(self, runner: Runner, last: bool = False) -> Iterator[None]:
        """Log a failed save, which is tried again after the usual time; raise the error if it is the ``last`` save."""
        try:
            yield
        except OSError as error:
            if last:
                raise
            self.saved = time.monotonic()
            runner.logger.log(
                logging.ERROR,
                f'CHECKPOINT NOT SAVED: {error}. The run continues and older checkpoints are unchanged. '
                'Free some space, or the work since then is lost if the run is killed.',
            )
