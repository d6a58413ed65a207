"""Training runs that advance step by step, so that several runs can alternate in one process.

It is what `tools/train.py` runs: the config's runner, hooks, optimizer wrapper and training loop, stopped before the
first step. :meth:`TrainingRun.advance` then takes steps of the loop; :meth:`TrainingRun.bare_step` takes one without
loop, hooks and loader, so that the difference is what these cost.
"""

import gc
import itertools
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import measure as m
import torch
from mmengine.registry import LOOPS, MODELS
from mmpretrain.structures import DataSample

from bootmae.commands.plan import gflop_per_image, task_of
from bootmae.config.steps import training_config
from bootmae.engine.runner.build import build_runner
from bootmae.engine.runner.loops import EpochLoop
from bootmae.engine.unwrap import bare_model

WRAPPERS = dict(bf16='AutocastOptimWrapper', fp16='AmpOptimWrapper', fp32='OptimWrapper')
DTYPES = dict(bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32)
NUMBERS = itertools.count()


class Paused(Exception):
    """Raised to leave ``runner.train()`` before the first step."""


@LOOPS.register_module(force=True)
class StepwiseLoop(EpochLoop):
    """Training loop that stops before its first step and is advanced from outside."""

    def run(self) -> None:
        self.begin()
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self.steps = enumerate(self.batches())
        raise Paused

    def advance(self, count: int) -> None:
        for idx, batch in itertools.islice(self.steps, count):
            self.run_iter(idx, batch)


@LOOPS.register_module(force=True)
class NoiseLoop(StepwiseLoop):
    """Training loop with one batch of noise on the device as input."""

    def batches(self) -> Iterator[dict]:
        return itertools.repeat(noise(bare_model(self.runner), self.runner.cfg.train_dataloader.batch_size))


def noise(model: torch.nn.Module, size: int) -> dict:
    """Create a batch of noise on the device of the model, with masks as drawn by the workers."""
    samples = [DataSample() for _ in range(size)]
    if hasattr(model, 'masking'):
        for sample in samples:
            sample.set_field(model.masking.draw_ids_shuffle(), 'ids_shuffle')
    images = torch.randint(
        0, 256, (size, 3, *model.backbone.img_size), dtype=torch.uint8, device=next(model.parameters()).device
    )
    return dict(inputs=images, data_samples=samples)


def compile_option(text: str) -> dict | bool:
    """Return the ``compile`` setting for ``none``, ``whole``, ``whole:reduce-overhead`` or ``whole+shape_padding``.

    After a colon stands the mode of ``torch.compile``, or its backend if it is one of those that compile nothing
    (``aot_eager``, ``eager``); after a plus sign an option of its inductor that is switched on.
    """
    if text == 'none':
        return False
    scope, *options = text.split('+')
    scope, _, mode = scope.partition(':')
    chosen = dict(scope=scope)
    if mode:
        chosen['backend' if mode in ('eager', 'aot_eager') else 'mode'] = mode
    return chosen | (dict(options=dict.fromkeys(options, True)) if options else {})


class TrainingRun:
    """A run of a pretraining config, ready for its first step.

    Args:
        config: path of the config.
        batch: images of a step.
        compile: see :func:`compile_option`.
        precision: ``bf16``, ``fp16`` or ``fp32``.
        options: changes of the config.
        data: options of the loader that reads the config's images; None trains on one batch of noise.
        warmup: steps to take at once.

    Attributes:
        first_step_s: seconds of the first step, which compiles.
        peak_gib: most memory in the steps after the first, without what was in use before the run was built; on a CPU
            that of the whole process. Replayed CUDA graphs allocate nothing, but the step that records them does.
    """

    def __init__(
        self,
        config: str,
        batch: int,
        compile: str = 'none',
        precision: str = 'bf16',
        options: dict | None = None,
        data: dict | None = None,
        warmup: int = 1,
    ):
        self.batch, self.compile, self.precision = batch, compile, precision
        before = m.allocated(m.default_device())
        self.folder = tempfile.TemporaryDirectory()
        cfg, _ = training_config(config, self._options(dict(options or {}), data))
        for hook in ('pictures', 'probe'):  # these hooks read their own images
            cfg.default_hooks.pop(hook, None)
        self.runner = build_runner(cfg, config, self.folder.name)
        with suppress(Paused):
            self.runner.train()
        self.loop, self.model = self.runner.train_loop, bare_model(self.runner)
        self.device = next(self.model.parameters()).device
        begin = time.perf_counter()
        self.advance(1)
        m.synchronize(self.device)
        self.first_step_s = time.perf_counter() - begin
        m.reset_peak_memory(self.device)  # without compilation, but with step 2, which records CUDA graphs
        self.advance(warmup)
        self.advance(2)
        self.peak_gib = m.peak_memory(self.device) - before

    def _options(self, options: dict, data: dict | None) -> dict:
        """Return config changes: no files are written, every batch size is accepted, and noise is the default input."""
        unread = dict(type='DigitImages', split='train', size=32, labels_per_class=None, pipeline=[], test_mode=False)
        source = (
            data
            if data is not None
            else {
                'train_dataloader.num_workers': 0,
                'train_dataloader.drop_last': False,
                'reader': 'stock',
                'train_dataloader.dataset': dict(unread, _delete_=True),
            }
        )
        loop = (NoiseLoop if data is None else StepwiseLoop).__name__
        return (
            {
                'experiment_name': f'benchmark_{next(NUMBERS)}',  # runs of one second would share log and message hub
                'log_level': 'ERROR',
                'train_dataloader.persistent_workers': False,
                'train_dataloader.batch_size': self.batch,
                'auto_scale_lr.base_batch_size': self.batch,
                'optim_wrapper.type': WRAPPERS[self.precision],
                'train_cfg': dict(_delete_=True, type=loop, max_epochs=1000),
                'default_hooks.checkpoint': None,
                'compile': compile_option(self.compile),
                'visualizer.vis_backends': [],
            }
            | source
            | options
        )

    def advance(self, count: int) -> None:
        """Take so many steps of the training loop."""
        self.loop.advance(count)

    def bare_step(self):
        """A function that takes a step on its own: forward, backward, update, momentum, on normalized images."""
        model, wrapper = self.model, self.runner.optim_wrapper
        optimizer, scaler = wrapper.optimizer, getattr(wrapper, 'loss_scaler', None)
        batch = noise(model, self.batch)
        inputs = model.data_preprocessor(batch, True)
        masked = hasattr(model, 'masking')
        orders = masked and model.batch_ids_shuffle(batch['data_samples'], self.batch, self.device)

        def losses() -> list[torch.Tensor]:
            if not masked:
                return list(model.loss(**inputs).values())
            pixel, feature = model.losses(inputs['inputs'], orders)
            return [pixel, model.feature_weight * feature]

        def step() -> None:
            autocast = torch.autocast(self.device.type, DTYPES[self.precision])
            with nullcontext() if self.precision == 'fp32' else autocast:
                loss = sum(losses())
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if hasattr(model, 'update_momentum'):
                model.update_momentum(0.999)

        return step

    def facts(self) -> dict:
        """Columns of a row: model, size, batch, precision, arithmetic."""
        cfg = self.runner.cfg
        with torch.device('meta'):
            fresh = MODELS.build(cfg.model)
        arch = cfg.model.backbone.arch
        return dict(
            method=type(self.model).__name__,
            arch=arch if isinstance(arch, str) else str(dict(arch)),
            img_size=self.model.backbone.img_size[0],
            batch=self.batch,
            precision=self.precision,
            compile=self.compile,
            first_step_s=self.first_step_s,
            gflop_per_image=gflop_per_image(fresh, task_of(cfg)),
        )

    def close(self) -> None:
        """End the loader's workers and let go of model and optimizer."""
        for hook in self.runner.hooks:
            getattr(hook, 'close', lambda: None)()
        self.folder.cleanup()
        self.loop = self.runner = self.model = None
        gc.collect()
