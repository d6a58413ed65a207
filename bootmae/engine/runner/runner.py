"""mmengine's runner with safe loading, exact resuming, and early checks of data and models."""

import logging
import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import LoggerHook
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ...checkpoints import check_resumable, load_run, read_checkpoint
from ...checkpoints.averages import taken, with_weights
from ...checkpoints.resume import Found, check_identity, check_optimizer, choose_checkpoint
from ...checkpoints.run_identity import RunIdentity
from ...checkpoints.start import start_pretraining
from ...checkpoints.write import write_checkpoint
from ...config.checks import check_dataset, check_metric
from ...config.images import check_class_number
from ...config.weights import adopts_statistics, follow_statistics
from ...data.annotated import explain_empty
from ...data.coco import forget_files
from ...data.value_checks import check_values
from ...distributed.counters import AsyncCounters
from ...files import remove_stale
from ...text import count_of
from ..hooks.checkpoint import checkpoint_folder
from ..hooks.class_results import ClassResultsHook, has_class_results
from ..hooks.compile import CompileHook
from ..hooks.results import NoResultHook
from ..unwrap import bare_model
from .compile import check_accumulation, compile_model, compile_settings
from .console import HeldConsole
from .elastic import config_schedule, fit_processes
from .records import TolerantBackend, tolerate_logs
from .state import cap_histories, history_length, resume_signature, run_content

STARTS = ('before_train_epoch', 'before_val_epoch', 'before_test_epoch')
PATIENCE = 60  # seconds until a file written on one machine is visible on another


@RUNNERS.register_module()
class SuiteRunner(Runner):
    """mmengine's ``Runner``, but it refuses unsafe pickles and checkpoints with missing weights."""

    found: Found | None = None  # the checkpoint of an automatic resume, until it is loaded
    identity: RunIdentity | None = None  # set by bootmae.commands.train; None takes checkpoints of any run
    averaged = False  # whether EMAHook has exchanged the weights with their averages, for a validation

    @cached_property
    def counters(self) -> AsyncCounters:
        """Counters that hooks sum over all ranks; all ranks must use it first in the same place."""
        return AsyncCounters()

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger; its console output starts with the run, see :class:`HeldConsole`."""
        logger = super().build_logger(*args, **kwargs)
        tolerate_logs(logger)
        self.console = HeldConsole(logger)
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build the visualizer; a log that cannot be written does not end the run, see :class:`TolerantBackend`."""
        built = super().build_visualizer(visualizer)
        for backend in built._vis_backends.values():
            TolerantBackend(backend)
        return built

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call all hooks; the first epoch shows the log on the console."""
        if fn_name in STARTS:
            self.console.show()
        if fn_name == 'after_val_epoch':
            self.averaged = False
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_val_epoch':
            self.averaged = True

    def _init_model_weights(self) -> None:
        """Initialize the weights; a continued pretraining starts from those of ``init``, see :func:`apply_init`."""
        super()._init_model_weights()
        if init := self.cfg.get('init'):
            start_pretraining(bare_model(self), **init)

    def load_checkpoint(self, filename: str, map_location='cpu', strict: bool = True, revise_keys=()) -> dict:
        """Load all weights of a run, for ``load_from`` and for resuming; see :func:`load_run`.

        Loading is always strict; the arguments after ``filename`` only exist for the base class.
        """
        content, source = self._content_of(filename), self.cfg.get('load_source', 'online')
        if not isinstance(content.get('meta'), dict):
            raise ValueError(f'{filename} holds weights, not a run: start from it with --init')
        if not self._resume:
            content = with_weights(content, source, filename)
        if self._resume:
            check_resumable(content, filename)
        model = bare_model(self)
        follow_statistics(model, content['meta'].get('bootmae', {}), filename, adopts_statistics(self.cfg))
        self.call_hook('after_load_checkpoint', checkpoint=content)
        load_run(model, content, filename)
        if self._resume:
            self._prepare_resume(content, filename)
        self._has_loaded = True
        note = '' if self._resume else taken(content, source)
        self.logger.info(f'Load checkpoint from {filename}{note and f": {note}"}')
        return content

    def _content_of(self, filename: str) -> dict:
        """Read a checkpoint, unless the search for the newest one has just read it."""
        found, self.found = self.found, None
        if found is not None and found.content is not None and str(found.path) == str(filename):
            return found.content
        return read_checkpoint(filename)

    def _prepare_resume(self, content: dict, filename: str) -> None:
        """Refuse the checkpoint of another run, and convert its counters to the number of processes of this one."""
        optimizer = getattr(self.optim_wrapper, 'optimizer', None)
        if optimizer is not None:
            check_optimizer(content, filename, optimizer)
        facts, changed = resume_signature(self), self.cfg.get('resume_changed', False)
        for difference in check_identity(content['meta'], filename, self.identity, facts, changed):
            self.logger.warning(f'resumed with another config (--resume-changed): {difference}')
        if self.identity is not None:
            self.identity = self.identity.with_start_of(content['meta'])
        fit_processes(content, self)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume from a checkpoint that fits this run; see :mod:`bootmae.checkpoints.resume`."""
        before, self._resume = self._resume, True
        schedule = config_schedule(self) if self.cfg.get('resume_changed') else nullcontext()
        try:
            with schedule:
                super().resume(filename, *args, **kwargs)
        finally:
            self._resume = before
        self.message_hub.update_info('last_ckpt', str(filename))  # the file may have been moved since it was written

    def load_or_resume(self) -> None:
        """Load or resume. All ranks resume automatically from the newest complete file that rank 0 finds."""
        if self._has_loaded or not self._resume or self._load_from is not None:
            super().load_or_resume()
            return
        path = self._agree_on_newest()
        if path is None:
            self.logger.info(f'no checkpoint in {checkpoint_folder(self)}: the run starts from the beginning')
            if start := self.cfg.get('first_start'):
                self._load_from, self._resume = start['load_from'], start['resume']
                super().load_or_resume()
            return
        self.logger.info(f'resuming from the newest checkpoint, {path}')
        await_file(path)
        self.resume(path)

    def _agree_on_newest(self) -> str | None:
        """Return the newest complete checkpoint that rank 0 sees, since shared folders may update late elsewhere."""
        answer: list[str | None] = [None, None]  # path, error
        if is_main_process():
            remove_stale(checkpoint_folder(self))
            try:
                self.found = choose_checkpoint(
                    checkpoint_folder(self),
                    self.logger.warning,
                    self.identity,
                    resume_signature(self),
                    self.cfg.get('resume_changed', False),
                )
                answer[0] = None if self.found.path is None else str(self.found.path)
            except ValueError as error:
                answer[1] = str(error)
        broadcast_object_list(answer)
        if answer[1]:
            raise ValueError(answer[1])
        return answer[0]

    @master_only
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args=None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args=None,
    ) -> None:
        """Write a checkpoint beside its final path and rename it; see :func:`write_checkpoint`.

        Raises:
            OSError: if the file could not be written; an older file of this name is unchanged.
        """
        if file_client_args or backend_args:
            raise ValueError('checkpoints are written to local folders: remove file_client_args and backend_args')
        counters = (
            dict(epoch=self.epoch + 1, iter=self.iter) if by_epoch else dict(epoch=self.epoch, iter=self.iter + 1)
        )  # hooks call it before the loop counts the iteration
        cap_histories(self.message_hub, history_length(self))
        self.call_hook('flush_logs')
        content = run_content(self, counters | (meta or {}), save_optimizer, save_param_scheduler)
        if self.identity is not None:
            content['meta']['identity'] = self.identity.record() | dict(facts=resume_signature(self))
        self.call_hook('before_save_checkpoint', checkpoint=content)
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        write_checkpoint(Path(out_dir, filename), content)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; without GPUs replace SyncBN by BN first."""
        if self.distributed and not torch.cuda.is_available() and has_norm(model, nn.SyncBatchNorm):
            print_log('SyncBN needs GPUs: each process normalizes its own batch (BN)', 'current', logging.WARNING)
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)

    def _maybe_compile(self, target: str) -> None:
        """Compile the model as the config's ``compile`` says; see compile.py."""
        model = bare_model(self)
        options = compile_settings(self.cfg.get('compile'), model)
        if options:
            check_accumulation(options, self.optim_wrapper._accumulative_counts)
            parts = compile_model(model, **options)
            self.register_hook(CompileHook())
            self.logger.info(
                f'compile={options}: {count_of(parts, "part is", "parts are")} compiled in the first step, which '
                'takes a minute or more'
            )

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs) -> DataLoader:
        """Build a data loader; explain the "need at least one array to concatenate" of an empty data set."""
        try:
            return Runner.build_dataloader(dataloader, *args, **kwargs)
        except ValueError as error:
            if 'at least one array' not in str(error):
                raise
            raise explain_empty(dataloader['dataset']) from error

    def build_train_loop(self, loop):
        return self._checked(super().build_train_loop(loop))

    def build_val_loop(self, loop):
        self._val_dataloader = name_samples(self._val_dataloader)
        return self._checked(super().build_val_loop(loop))

    def build_test_loop(self, loop):
        self._test_dataloader = name_samples(self._test_dataloader)
        return self._checked(super().build_test_loop(loop))

    def _checked(self, loop):
        """Return the loop after checking that its data set, metrics and model fit together."""
        check_values(loop.dataloader.dataset)
        check_class_number(loop.dataloader.dataset, self.cfg)
        metrics = loop.evaluator.metrics if hasattr(loop, 'evaluator') else ()
        check_dataset(loop.dataloader.dataset, bare_model(self), metrics)
        for metric in metrics:
            check_metric(metric, loop.dataloader.dataset)
        forget_files()
        if metrics and not any(isinstance(hook, NoResultHook) for hook in self.hooks):
            self.register_hook(NoResultHook())
        if has_class_results(metrics) and not any(isinstance(hook, ClassResultsHook) for hook in self.hooks):
            self.register_hook(ClassResultsHook())
        return loop

    def train(self) -> nn.Module:
        """Train, after the checks that need the model."""
        if self.cfg.train_dataloader.get('batch_size') == 1:
            check_single_image(bare_model(self))
        return super().train()

    def end_workers(self) -> None:
        """End the processes of persistent data loaders. Left to the garbage collector, each takes 5 s to end."""
        for loop in (self._train_loop, self._val_loop):
            if isinstance(loop, BaseLoop) and loop.dataloader._iterator is not None:
                loop.dataloader._iterator._shutdown_workers()  # the traceback of an exception holds it, too
                loop.dataloader._iterator = None

    def test(self) -> dict[str, float]:
        """Test; only rank 0 writes the metrics, while in mmengine all ranks write the same file at once."""
        for hook in self.hooks:
            if isinstance(hook, LoggerHook):
                hook.after_test_epoch = master_only(hook.after_test_epoch)
        return super().test()


def name_samples(loader: dict | DataLoader) -> dict | DataLoader:
    """Return the config of an evaluation's loader with :class:`NamedSamples` around its data set."""
    if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
        return loader
    return dict(loader, dataset=dict(type='NamedSamples', dataset=loader['dataset']))


def await_file(path: str, seconds: float = PATIENCE) -> None:
    """Wait until a file that another process has seen is visible here; shared folders may update late."""
    end = time.monotonic() + seconds
    while not Path(path).is_file() and time.monotonic() < end:
        time.sleep(0.1)


def has_norm(model: nn.Module, kind: type) -> bool:
    """Whether the model has a trainable layer of this kind."""
    return any(
        isinstance(module, kind) and module.weight is not None and module.weight.requires_grad
        for module in model.modules()
    )


def check_single_image(model: nn.Module) -> None:
    """Raise a ValueError for batch normalization over a single image, whose statistics are undefined."""
    if has_norm(model, _BatchNorm) and not has_norm(model, nn.SyncBatchNorm):
        raise ValueError(
            f'train_dataloader.batch_size=1, but {type(model).__name__} has batch normalization, which '
            'needs at least 2 images in a process: raise the batch size, or give norm_cfg='
            "dict(type='GN', num_groups=32) to the pyramid and the heads"
        )
