"""mmengine's runner with safe and whole loading, and batch normalisation that works wherever it runs."""

import logging

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ..checkpoints import check_resumable, load_run, read_checkpoint
from .guards import check_dataset, check_metric
from .hooks import bare_model


@RUNNERS.register_module()
class SuiteRunner(Runner):
    """mmengine's ``Runner`` falls back to unsafe pickles and goes on with missing weights; this one refuses both."""

    def load_checkpoint(self, filename: str, map_location='cpu', strict: bool = True, revise_keys=()) -> dict:
        """Load all weights of a run, for ``load_from`` and for resuming; see :func:`load_run`.

        The arguments after the first are the base class's and have no effect: loading is strict, names are ours.
        """
        content = read_checkpoint(filename)
        if 'meta' not in content:
            raise ValueError(f'{filename} holds weights, not a run: start from it with --init')
        if self._resume:
            check_resumable(content, filename)
        model = bare_model(self)
        follow_statistics(model, content['meta'].get('bootmae', {}), filename, self.cfg.get('adopt_statistics', False))
        self.call_hook('after_load_checkpoint', checkpoint=content)
        load_run(model, content, filename)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return content

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As mmengine's, which turns SyncBN into BN for a single process; here also where there is no GPU for it."""
        if self.distributed and not torch.cuda.is_available() and has_norm(model, nn.SyncBatchNorm):
            print_log('SyncBN needs GPUs: each process normalises its own batch (BN)', 'current', logging.WARNING)
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(dataloader, *args, **kwargs) -> DataLoader:
        """As mmengine's, whose data sets fail with "need at least one array to concatenate" where there is no image."""
        try:
            return Runner.build_dataloader(dataloader, *args, **kwargs)
        except ValueError as error:
            if 'at least one array' not in str(error):
                raise
            dataset = dataloader['dataset']
            raise ValueError(f'{dataset["type"]} found no image: check its data_root={dataset.get("data_root")!r}, '
                             f'data_prefix, {"img_suffix" if "ann_file" not in dataset else "ann_file"} and filter_cfg'
                             ) from error

    def build_train_loop(self, loop):
        return self._checked(super().build_train_loop(loop))

    def build_val_loop(self, loop):
        return self._checked(super().build_val_loop(loop))

    def build_test_loop(self, loop):
        return self._checked(super().build_test_loop(loop))

    def _checked(self, loop):
        """The loop, once its data set and metrics are found to fit the model and one another."""
        check_dataset(loop.dataloader.dataset, bare_model(self))
        for metric in loop.evaluator.metrics if hasattr(loop, 'evaluator') else ():
            check_metric(metric, loop.dataloader.dataset)
        return loop

    def train(self) -> nn.Module:
        """As mmengine's, after the checks that need the model."""
        if self.cfg.train_dataloader.get('batch_size') == 1:
            check_single_image(bare_model(self))
        return super().train()

    def test(self) -> dict[str, float]:
        """As mmengine's, but only the first process writes the metrics: there all do, into one file at once."""
        for hook in self.hooks:
            if isinstance(hook, LoggerHook):
                hook.after_test_epoch = master_only(hook.after_test_epoch)
        return super().test()


def has_norm(model: nn.Module, kind: type) -> bool:
    """Whether a trained layer of this kind is in the model."""
    return any(isinstance(module, kind) and module.weight is not None and module.weight.requires_grad
               for module in model.modules())


def check_single_image(model: nn.Module) -> None:
    """Raise a ValueError for batch normalisation over a single image, whose statistics are useless or undefined."""
    if has_norm(model, _BatchNorm) and not has_norm(model, nn.SyncBatchNorm):
        raise ValueError(f'train_dataloader.batch_size=1, but {type(model).__name__} has batch normalisation, which '
                         'needs at least 2 images in a process: raise the batch size, or give norm_cfg='
                         "dict(type='GN', num_groups=32) to the pyramid and the heads")


def follow_statistics(model: nn.Module, recorded: dict, path: str, adopt: bool) -> None:
    """Normalise images as the run of a checkpoint did, or refuse it.

    Args:
        model: with a ``data_preprocessor``.
        recorded: what the file says of itself, ``mean`` and ``std`` of 0..255 among it; else nothing is known.
        path: of the file, for the message.
        adopt: take the file's statistics; otherwise they must be the model's.
    """
    preprocessor = model.data_preprocessor
    if 'mean' not in recorded or getattr(preprocessor, 'mean', None) is None:
        return
    theirs = recorded['mean'], recorded['std']
    ours = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
    if np.allclose(ours, theirs, atol=0.01):
        return
    if not adopt:
        raise ValueError(f'{path} was trained on images normalised with mean {theirs[0]}, std {theirs[1]}, but the '
                         f'config has mean {ours[0]}, std {ours[1]}: use the config that wrote the file')
    for name, values in zip(('mean', 'std'), theirs):
        buffer = getattr(preprocessor, name)
        buffer.copy_(torch.tensor(values).view_as(buffer))
    print_log(f'images are normalised with mean {theirs[0]}, std {theirs[1]}, as for {path}', logger='current')
