#!/usr/bin/env python3
"""The pretraining step: images/s, memory, share of the chip, and what the training loop adds to it.

    benchmarks/step.py configs/pretrain/bootmae_vitb.py --batch 256 --compile whole          # on a GPU
    benchmarks/step.py --all                                                                 # every row of the table
    benchmarks/step.py configs/pretrain/bootmae_vitb.py --batch 4 --steps 4 --precision fp32 --cfg-options \\
        model.backbone.arch=tiny model.pixel_decoder.num_heads=3 model.feature_decoder.num_heads=3   # on a CPU

It is `tools/train.py`: the config's runner, hooks, optimiser wrapper and training loop, but that the loader is replaced
by one batch of noise that is on the device already, with masks as workers would have drawn them. In turn with some of
its steps go bare ones of the same model and optimiser: forward, backward, update and momentum, nothing else, and on
images that are normalised already. --profile names the kernels that take the time, of bare steps.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import measure as m
import torch
from mmengine.config import DictAction
from mmengine.hooks import Hook
from mmengine.registry import LOOPS, MODELS
from mmpretrain.structures import DataSample

from bootmae.commands import train
from bootmae.commands.plan import gflop_per_image, task_of
from bootmae.engine.runner.loops import EpochLoop
from bootmae.engine.unwrap import bare_model

VITB, VITL, MAE = (f'configs/pretrain/{name}.py' for name in ('bootmae_vitb', 'bootmae_vitl', 'mae_vitb'))
WRAPPERS = dict(bf16='AutocastOptimWrapper', fp16='AmpOptimWrapper', fp32='OptimWrapper')
DTYPES = dict(bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32)
ALL = [  # config, batch, compile, precision
    (MAE, 256, 'none', 'bf16'), (MAE, 256, 'blocks', 'bf16'),
    (VITB, 256, 'none', 'bf16'), (VITB, 256, 'blocks', 'bf16'), (VITB, 256, 'whole', 'bf16'),
    (VITB, 256, 'whole:reduce-overhead', 'bf16'), (VITB, 256, 'whole:max-autotune-no-cudagraphs', 'bf16'),
    (VITB, 256, 'none', 'fp16'), (VITB, 256, 'none', 'fp32'), (VITB, 512, 'whole', 'bf16'),
    (VITB, 512, 'blocks', 'bf16'), (VITL, 256, 'whole', 'bf16')]


class Done(Exception):
    """Ends a run that has been timed."""


@LOOPS.register_module(force=True)
class NoiseLoop(EpochLoop):
    """The training loop, fed with one batch that lies on the device."""

    def batches(self) -> Iterator[dict]:
        model = bare_model(self.runner)
        size, device = self.runner.cfg.train_dataloader.batch_size, next(model.parameters()).device
        samples = [DataSample() for _ in range(size)]
        if hasattr(model, 'masking'):
            for sample in samples:
                sample.set_field(model.masking.draw_order(), 'mask_order')
        images = torch.randint(0, 256, (size, 3, *model.backbone.img_size), dtype=torch.uint8, device=device)
        return itertools.repeat(dict(inputs=images, data_samples=samples))


class Clock(Hook):
    """Times turns of loop steps and of bare steps; then raises :class:`Done`."""

    priority = 'LOWEST'

    def __init__(self, turns: int, size: int, warmup: int, profile: bool):
        self.turns, self.size, self.warmup, self.profile = turns, size, warmup, profile
        self.loop, self.bare, self.peak, self.kernels, self.first = [], [], 0.0, [], 0.0

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if batch_idx == 0:
            self.device = next(runner.model.parameters()).device
            self.begin = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done = batch_idx + 1 - self.warmup
        if batch_idx == 0:
            m.synchronise(self.device)
            self.first = time.perf_counter() - self.begin
        if done < 0 or done % self.size:
            return
        m.synchronise(self.device)
        if done:
            self.loop.append((time.perf_counter() - self.begin) / self.size)
            self.peak = max(self.peak, m.peak_memory(self.device))
        step = bare_step(runner, data_batch)
        if done < self.turns * self.size or not done:
            times = m.timed(step, 1, self.size, self.device)
            self.bare.append(sum(times) / self.size)
        else:
            self.kernels = m.top_kernels(step, self.device) if self.profile else []
            raise Done
        m.reset_peak_memory(self.device)
        m.synchronise(self.device)
        self.begin = time.perf_counter()


def bare_step(runner, batch: dict):
    """A function that does a step on its own: forward, backward, update, momentum."""
    model, wrapper = bare_model(runner), runner.optim_wrapper
    optimizer, device = wrapper.optimizer, next(model.parameters()).device
    scaler = getattr(wrapper, 'loss_scaler', None)
    precision = next(name for name, kind in WRAPPERS.items() if kind.removesuffix('OptimWrapper') in
                     type(wrapper).__name__)
    inputs = model.data_preprocessor(batch, True)
    orders = hasattr(model, 'masking') and model.mask_orders(batch['data_samples'], len(inputs['inputs']), device)

    def losses() -> list[torch.Tensor]:
        if not hasattr(model, 'masking'):
            return list(model.loss(**inputs).values())
        pixel, feature = model.losses(inputs['inputs'], orders)
        return [pixel, model.feature_weight * feature]

    def step() -> None:
        with nullcontext() if precision == 'fp32' else torch.autocast(device.type, DTYPES[precision]):
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


def options_of(args: argparse.Namespace, work_dir: str) -> dict:
    """The config's changes: noise in memory for image files, one turn after another, no file written."""
    compile, _, mode = args.compile.partition(':')
    side = dict(type='DigitImages', split='train', size=32, labels_per_class=None, pipeline=[], test_mode=False)
    return dict(args.cfg_options or {}) | {
        'train_dataloader.batch_size': args.batch, 'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False, 'auto_scale_lr.base_batch_size': args.batch,
        'train_dataloader.dataset': dict(side, _delete_=True), 'train_dataloader.drop_last': False,
        'train_cfg': dict(_delete_=True, type='NoiseLoop', max_epochs=1000), 'default_hooks.checkpoint': None,
        'optim_wrapper.type': WRAPPERS[args.precision], 'reader': 'stock',
        'compile': compile != 'none' and (dict(scope=compile, mode=mode) if mode else compile),
        'vis_backends': [], 'visualizer.vis_backends': [], 'work_dir': work_dir}


def measure(args: argparse.Namespace) -> tuple[dict, list[str]]:
    """Train and time: the row, and the kernels that take the time if asked for."""
    clock = Clock(args.turns, args.steps, args.warmup, args.profile)
    build = train.build_runner

    def build_with_clock(*positional, **named):
        runner = build(*positional, **named)
        runner.register_hook(clock)
        clock.runner = runner
        return runner
    train.build_runner = build_with_clock
    with tempfile.TemporaryDirectory() as work_dir, suppress(Done):
        train.train(args.config, work_dir, options_of(args, work_dir))
    train.build_runner = build
    return row_of(args, clock), clock.kernels


def row_of(args: argparse.Namespace, clock: Clock) -> dict:
    model, device = bare_model(clock.runner), clock.device
    loop, bare = statistics.median(clock.loop), statistics.median(clock.bare)
    ratios = [loop / bare for loop, bare in zip(clock.loop, clock.bare)]
    with torch.device('meta'):
        fresh = MODELS.build(clock.runner.cfg.model)
    gflop = gflop_per_image(fresh, tuple(model.backbone.img_size), task_of(clock.runner.cfg))
    peak = m.matmul_peak(device, DTYPES[args.precision] if m.on_gpu(device) else None)
    rate = args.batch / loop
    arch = clock.runner.cfg.model.backbone.arch
    return m.facts(device) | dict(
        method=type(model).__name__, arch=arch if isinstance(arch, str) else str(dict(arch)),
        img_size=model.backbone.img_size[0], batch=args.batch, precision=args.precision, compile=args.compile,
        images_per_s=rate, bare_images_per_s=args.batch / bare, ms_per_step=1e3 * loop,
        overhead_percent=100 * (statistics.median(ratios) - 1), peak_gib=clock.peak, gflop_per_image=gflop,
        tflops=gflop * rate / 1e3, peak_tflops=peak, peak_share=gflop * rate / 1e3 / peak,
        first_step_s=clock.first)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', default=VITB)
    parser.add_argument('--all', action='store_true', help='every row of the table, each in a process of its own')
    parser.add_argument('--batch', type=int, default=256, help='images of a step (default: 256)')
    parser.add_argument('--compile', default='none', metavar='SCOPE[:MODE]',
                        help='none, whole or blocks, and torch.compile\'s mode, such as whole:reduce-overhead')
    parser.add_argument('--precision', choices=WRAPPERS, default='bf16')
    parser.add_argument('--turns', type=int, default=5, help='of loop steps and bare steps (default: 5)')
    parser.add_argument('--steps', type=int, default=10, help='in a turn (default: 10)')
    parser.add_argument('--warmup', type=int, default=5, help='steps before the first turn (default: 5)')
    parser.add_argument('--profile', action='store_true', help='name the kernels that take the time')
    parser.add_argument('--no-row', action='store_true', help='print only; benchmarks/results/step.csv stays')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes of the config')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.all:
        if m.default_device() == 'cpu':
            raise SystemExit('--all is for a GPU: on a CPU name a config and a small --batch')
        command = [sys.executable, __file__, *(['--profile'] if args.profile else [])]
        return max(subprocess.run([*command, config, '--batch', str(batch), '--compile', compile, '--precision',
                                   precision]).returncode for config, batch, compile, precision in ALL)
    row, kernels = measure(args)
    print('\n'.join(f'{name:18} {value:.4g}' if isinstance(value, float) else f'{name:18} {value}'
                    for name, value in row.items()), flush=True)
    print('\n'.join(kernels), flush=True)
    if not args.no_row:
        print(f'-> {m.add_row("step", row)}', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
