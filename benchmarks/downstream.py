#!/usr/bin/env python3
"""Compare a training step of fine-tuning, UperNet and Mask R-CNN with the stock config of the same model and size.

    benchmarks/downstream.py                              # full size on a GPU, shrunk models without one
    benchmarks/downstream.py --task seg --batch 16 --precision bf16 --profile

Both alternate on one synthetic batch on the device, each through `train_step` with the optimizer wrapper of its config
and without hooks. Peak memory is that of tensors on a GPU; on a CPU it is measured in a separate process. With one
thread, images/s are per second of CPU time. `configured` uses the precision of each config, the other precisions apply
to both. The command prints images/s, ratios and memory, and adds a row per task and precision to
benchmarks/results/downstream.csv. The stock configs are:

    cls     fine-tuning of MAE in mmpretrain
    seg     UperNet on MAE in mmseg; its key for mixed precision has no effect, so it trains in float32
    det     mmdet has no ViT: its Mask R-CNN and AdamW with mmpretrain's ViT and mmseg's pyramid before the FPN
    vitdet  our heads with mmdet's classes, mmpretrain's ViTSAM (windows, decomposed relative positions), our pyramid
"""

import argparse
import functools
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import measure
import numpy as np
import torch

import bootmae.registry  # noqa: F401  before the stack
from bootmae import compat
from bootmae.config.model import build_model
from bootmae.config.options import OptionsAction
from bootmae.engine.hooks import provenance

import mmdet.models  # noqa: F401  isort: skip
import mmseg.models  # noqa: F401
from downstream_configs import BATCHES, CONFIGS, IMAGES, our_config, stock_config
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

WRAPPERS = {  # ours, stock; None: as configured
    'configured': (None, None),
    'bf16': (dict(type='AutocastOptimWrapper'), dict(type='AmpOptimWrapper', dtype='bfloat16')),
    'fp16': (
        dict(type='GuardedAmpOptimWrapper', loss_scale='dynamic'),
        dict(type='AmpOptimWrapper', loss_scale='dynamic'),
    ),
    'float32': (dict(type='GuardedOptimWrapper'), dict(type='OptimWrapper')),
}
OBJECTS = 8  # per image of a detector


def compiled_ops() -> bool:
    return hasattr(sys.modules['mmcv._ext'], '__file__')


def choose_ops(kind: str) -> None:
    """Select mmcv's compiled NMS and RoIAlign, or torchvision's, for both detectors."""
    if kind == 'torchvision':
        for name in ('nms', 'roi_align'):
            sys.modules[f'mmcv.ops.{name}'].ext_module = compat._make_standin_ops()


def config_of(name: str, args: argparse.Namespace, precision: str) -> Config:
    """Return the config of `ours` or `stock` with a precision."""
    ours = name == 'ours'
    cfg = our_config(args.task, args.size, args.cfg_options) if ours else stock_config(args.task, args.size)
    wrapper = WRAPPERS[precision][0 if ours else 1]
    if wrapper:
        kept = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('type', 'dtype', 'loss_scale')}
        cfg.optim_wrapper = kept | wrapper
    return cfg


def precision_of(cfg: Config) -> str:
    """Return `bf16 autocast`, `fp16 autocast, scaler`, ..."""
    name = provenance.precision_of(cfg)
    return f'{name}, scaler' if 'Amp' in cfg.optim_wrapper.get('type', '') else name


@functools.cache
def be_quiet() -> None:
    """Hide the log lines of weight initialization and parameter groups."""
    MMLogger.get_instance('downstream', log_level='ERROR')


def stepper(cfg: Config, batch: dict, device: measure.Device) -> Callable[[], dict]:
    """Build model and optimizer, and return a function that runs a training step."""
    be_quiet()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        model = build_model(cfg)
        model.init_weights()
        model = model.to(device).train()
        with redirect_stdout(io.StringIO()):  # mmseg prints all parameter groups
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return lambda: model.train_step(dict(batch), wrapper)


def batch_of(task: str, image: tuple[int, int], count: int, device: measure.Device) -> dict:
    """Create a batch of noise with random labels on the device."""
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.integers(0, 256, (3, *image), np.uint8)).to(device) for _ in range(count)]
    sample = dict(cls=labeled, seg=labeled_pixels).get(task, labeled_boxes)
    samples = [sample(rng, image).to(device) for _ in inputs]
    for item in samples:
        item.set_metainfo(dict(img_shape=image, ori_shape=image, pad_shape=image, scale_factor=(1.0, 1.0)))
    return dict(inputs=inputs, data_samples=samples)


def labeled(rng: np.random.Generator, image: tuple[int, int]) -> DataSample:
    return DataSample().set_gt_label(int(rng.integers(1000)))


def labeled_pixels(rng: np.random.Generator, image: tuple[int, int]) -> SegDataSample:
    return SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(rng.integers(0, 150, (1, *image)))))


def labeled_boxes(rng: np.random.Generator, image: tuple[int, int]) -> DetDataSample:
    """Draw boxes with sides of an eighth to half of the image, and their filled masks."""
    height, width = image
    sides = np.stack((rng.uniform(width / 8, width / 2, OBJECTS), rng.uniform(height / 8, height / 2, OBJECTS)), 1)
    corners = rng.uniform(0, 1, (OBJECTS, 2)) * ((width, height) - sides)
    boxes = np.concatenate((corners, corners + sides), 1).astype(np.float32)
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    return DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(rng.integers(0, 80, OBJECTS)),
            masks=BitmapMasks(masks, height, width),
        )
    )


def memory_of(name: str, args: argparse.Namespace, precision: str) -> float:
    """Measure the peak memory in GiB of model, optimizer and three steps on a CPU; runs in a separate process."""
    torch.set_num_threads(args.threads)
    choose_ops(args.ops)
    batch = batch_of(args.task, args.image, args.batch, args.device)
    measure.reset_peak_memory(args.device)
    before = measure.peak_memory(args.device)
    step = stepper(config_of(name, args, precision), batch, args.device)
    for _ in range(3):
        step()
    return measure.peak_memory(args.device) - before


def compare(args: argparse.Namespace, precision: str) -> dict:
    """Measure speed and memory of both in one precision, and return a row."""
    configs = {name: config_of(name, args, precision) for name in ('ours', 'stock')}
    choose_ops(args.ops)
    batch = batch_of(args.task, args.image, args.batch, args.device)
    torch.backends.cudnn.benchmark = args.task == 'seg'  # as in both configs
    peaks, steps = {}, {}
    own_process = args.memory and not measure.on_gpu(args.device)  # resident memory belongs to a whole process
    for name, cfg in configs.items():
        if own_process:
            with torch.multiprocessing.get_context('spawn').Pool(1) as pool:
                peaks[name] = pool.apply(memory_of, (name, args, precision))
        before = measure.allocated(args.device)
        measure.reset_peak_memory(args.device)
        steps[name] = stepper(cfg, batch, args.device)
        for _ in range(3 if args.memory else 1):
            steps[name]()
        if not own_process:
            measure.reset_peak_memory(args.device)  # without the memory in which cuDNN tries its algorithms
            steps[name]()
            peaks[name] = measure.peak_memory(args.device) - before
    turns = {name: lambda step=step: [step() for _ in range(args.turn)] for name, step in steps.items()}
    measure.alternate(turns, args.warmup, args.device)
    times = measure.alternate(turns, args.rounds, args.device, args.clock)
    if args.profile:
        for name, turn in turns.items():
            print(f'{args.task}, {name}, {precision_of(configs[name])}:')
            print('\n'.join(measure.top_kernels(turn, args.device)))
    speeds = {name: args.batch * args.turn / statistics.median(seconds) for name, seconds in times.items()}
    return measure.facts(args.device, ['onedl-mmsegmentation', 'onedl-mmdetection']) | dict(
        task=args.task,
        size=args.size,
        img_size='x'.join(map(str, args.image)),
        batch=args.batch,
        precision=precision,
        **{f'precision_{name}': precision_of(cfg) for name, cfg in configs.items()},
        ops=args.ops if 'det' in args.task else '',
        options=' '.join(f'{key}={value}' for key, value in args.cfg_options.items()),
        images_per_s_ours=speeds['ours'],
        images_per_s_stock=speeds['stock'],
        steps=args.turn * args.rounds,
        ratio=measure.speed_ratio(times, 'ours', 'stock'),
        ratio_quartiles=quartiles(times),
        clock='wall' if args.clock is None else 'CPU time of the process',
        peak_gib_ours=peaks['ours'],
        peak_gib_stock=peaks['stock'],
        memory_ratio=peaks['ours'] / peaks['stock'],
        memory_kind=measure.memory_kind(args.device),
    )


def quartiles(times: dict[str, list[float]]) -> str:
    """Format the quartiles of the speed ratio over the rounds."""
    low, high = np.percentile(np.divide(times['stock'], times['ours']), (25, 75))
    return f'{low:.2f}..{high:.2f}'


def report(row: dict) -> str:
    """Format a row."""
    return '\n'.join(
        [
            f'{row["task"]} ({row["size"]}, {row["img_size"]}, batch {row["batch"]}) on {row["device"]}:',
            *(
                f'  {name:6}{row[f"images_per_s_{name}"]:9.2f} images/s {row[f"peak_gib_{name}"]:7.2f} GiB  '
                f'{row[f"precision_{name}"]}'
                for name in ('ours', 'stock')
            ),
            f'  {row["ratio"]:.3f} x as fast (quartiles {row["ratio_quartiles"]}), '
            f'{row["memory_ratio"]:.3f} x the memory',
        ]
    )


def settings(
    task: str,
    device: str,
    size: str | None = None,
    rounds: int | None = None,
    turn: int | None = None,
    batch: int | None = None,
    **others,
) -> argparse.Namespace:
    """Return the arguments of :func:`compare`; defaults depend on the device."""
    gpu, threads = measure.on_gpu(device), torch.get_num_threads()
    size = size or ('full' if gpu else 'tiny')
    known = dict(
        ops='compiled' if compiled_ops() else 'torchvision', warmup=2, profile=False, memory=True, cfg_options={}
    )
    return argparse.Namespace(
        **known
        | others
        | dict(
            task=task,
            device=device,
            size=size,
            batch=batch or BATCHES[size][task],
            image=IMAGES[size][task],
            rounds=rounds or (20 if gpu else 8),
            turn=turn or (5 if gpu else 1),
            threads=threads,
            clock=time.process_time if not gpu and threads == 1 else None,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument('--device', choices=('cuda', 'cpu'), default=measure.default_device())
    parser.add_argument('--size', choices=BATCHES, help='default: full on a GPU, tiny on a CPU')
    parser.add_argument('--batch', type=int, help='default: batch size of the stock configs on a GPU')
    parser.add_argument(
        '--precision', nargs='+', choices=WRAPPERS, help='default: configured and bf16 on a GPU, float32 on a CPU'
    )
    parser.add_argument('--rounds', type=int, help='number of turns; default: 20 on a GPU, 8 on a CPU')
    parser.add_argument('--turn', type=int, help='steps per turn; default: 5 on a GPU, 1 on a CPU')
    parser.add_argument(
        '--ops',
        choices=('compiled', 'torchvision'),
        default='compiled' if compiled_ops() else 'torchvision',
        help="NMS and RoIAlign of detectors: mmcv's compiled ops or torchvision's",
    )
    parser.add_argument('--profile', action='store_true', help='print the most expensive kernels of both')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, default={}, help='override values of our config'
    )
    args = parser.parse_args()
    gpu = measure.on_gpu(args.device)
    if not gpu and torch.cuda.is_available():  # mmengine chose the GPU when it was imported
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        os.execv(sys.executable, [sys.executable, *sys.argv])
    precisions = args.precision or (['configured', 'bf16'] if gpu else ['float32'])
    if not gpu and {'bf16', 'fp16'} & set(precisions):
        raise SystemExit('--precision bf16 and fp16 need a GPU: mmengine has no mixed precision without one')
    if args.ops == 'compiled' and not compiled_ops():
        raise SystemExit('--ops compiled needs mmcv with compiled ops: see docs/install.md')
    for task in args.task:
        for precision in precisions:
            row = compare(settings(**vars(args) | dict(task=task)), precision)
            print(report(row), flush=True)
            measure.add_row('downstream', row)


if __name__ == '__main__':
    main()
