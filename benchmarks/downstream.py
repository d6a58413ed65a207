#!/usr/bin/env python3
"""A training step of fine-tuning, UperNet and Mask R-CNN, against the stock configuration of the same model and size.

    benchmarks/downstream.py                              # full size on a GPU, shrunk models without one
    benchmarks/downstream.py --task seg --batch 16 --precision bf16 --profile

Both take turns on one synthetic batch that lies on the device, each through `train_step` with the optimizer wrapper
of its config, without hooks. The peak memory is that of tensors on a GPU; on a CPU it is taken in a process of its own,
and on one thread images/s are those of a second of CPU time. `configured` compares the two as their configs say, the
other precisions are those of both. Prints images/s, ratios and memory, and adds a row for each task and precision to
benchmarks/results/downstream.csv. What stock means:

    cls     mmpretrain's fine-tuning of MAE
    seg     mmseg's UperNet on MAE; its key for mixed precision is dead, so it trains in float32
    det     mmdet has no ViT: its Mask R-CNN and AdamW with mmpretrain's ViT and mmseg's pyramid before the FPN
    vitdet  the same heads as ours of mmdet's own classes, with mmpretrain's ViTSAM (windows, decomposed relative
            positions) and our pyramid
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
from pathlib import Path

import measure
import numpy as np
import torch

import bootmae.registry  # noqa: F401  before the stack
from bootmae import compat
from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.engine.hooks.provenance import PRECISIONS as NAMES
from bootmae.models.vit import resolve_arch

import mmdet.models  # noqa: F401  isort: skip
import mmpretrain
import mmseg
import mmseg.models
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

CONFIGS = dict(
    cls='cls/bootmae_vitb_finetune',
    seg='seg/bootmae_vitb_upernet',
    det='det/bootmae_vitb_maskrcnn_1x',
    vitdet='det/bootmae_vitb_vitdet',
)
BATCHES = dict(full=dict(cls=128, seg=2, det=2, vitdet=4), tiny=dict(cls=8, seg=2, det=2, vitdet=2))
IMAGES = dict(
    full=dict(cls=(224, 224), seg=(512, 512), det=(800, 1216), vitdet=(1024, 1024)),
    tiny=dict(cls=(224, 224), seg=(256, 256), det=(256, 320), vitdet=(448, 448)),
)
WRAPPERS = {  # of ours and of stock; None: as configured
    'configured': (None, None),
    'bf16': (dict(type='AutocastOptimWrapper'), dict(type='AmpOptimWrapper', dtype='bfloat16')),
    'fp16': (
        dict(type='GuardedAmpOptimWrapper', loss_scale='dynamic'),
        dict(type='AmpOptimWrapper', loss_scale='dynamic'),
    ),
    'float32': (dict(type='GuardedOptimWrapper'), dict(type='OptimWrapper')),
}
TINY = 192  # width of a shrunk ViT
HEADS = 64  # width of the heads on it
OBJECTS = 8  # in each image of a detector


def packaged(package, path: str) -> Config:
    """A config of an installed package; `mmseg::` in front of a name does not resolve."""
    return Config.fromfile(Path(package.__path__[0], '.mim', 'configs', path))


def our_config(task: str, size: str, options: dict) -> Config:
    return load_config(
        measure.ROOT / 'configs' / f'{CONFIGS[task]}.py', (shrunk(task) if size == 'tiny' else {}) | options
    )


def shrunk(task: str) -> dict:
    """Options that make our config small."""
    options: dict[str, object] = {'backbone.arch': 'tiny'}
    height = IMAGES['tiny'][task][0]
    if task == 'cls':
        options |= {'head.in_channels': TINY}
    elif task == 'seg':
        options |= {'backbone.img_size': height, **small_upernet()}
    else:
        box, mask = 'roi_head.bbox_head', 'roi_head.mask_head'
        options |= dict.fromkeys(
            (
                'rpn_head.in_channels',
                'rpn_head.feat_channels',
                f'{box}.in_channels',
                f'{box}.fc_out_channels',
                f'{mask}.in_channels',
                f'{mask}.conv_out_channels',
                'roi_head.bbox_roi_extractor.out_channels',
                'roi_head.mask_roi_extractor.out_channels',
                'train_cfg.rcnn.sampler.num',
            ),
            HEADS,
        )
        options |= (
            {'neck.in_channels': [TINY] * 4, 'neck.out_channels': HEADS}
            if task == 'det'
            else {
                'backbone.pyramid.out_channels': HEADS,
                f'{box}.conv_out_channels': HEADS,
                'data_preprocessor.pad_size_divisor': height,
            }
        )
    return {f'model.{key}': value for key, value in options.items()}


def small_upernet() -> dict:
    return {
        'decode_head.in_channels': [TINY] * 4,
        'decode_head.channels': HEADS,
        'auxiliary_head.in_channels': TINY,
        'auxiliary_head.channels': HEADS,
        'data_preprocessor.size': IMAGES['tiny']['seg'],
    }


def stock_config(task: str, size: str) -> Config:
    """What a user of the stock libraries would train; its weights start random."""
    if task == 'cls':
        cfg = packaged(mmpretrain, 'mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py')
        cfg.model.backbone.init_cfg = None
        small = {'backbone.arch': 'deit-tiny', 'head.in_channels': TINY}
    elif task == 'seg':
        cfg = packaged(mmseg, 'mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py')
        cfg.model.pretrained = None
        small = {
            'backbone.embed_dims': TINY,
            'backbone.num_heads': 3,
            'backbone.img_size': IMAGES[size][task],
            'neck.embed_dim': TINY,
            **small_upernet(),
        }
    else:
        return stock_detector(our_config(task, size, {}), task, IMAGES[size][task])
    cfg.merge_from_dict({f'model.{key}': value for key, value in small.items()} if size == 'tiny' else {})
    return cfg


def stock_detector(cfg: Config, task: str, image: tuple[int, int]) -> Config:
    """Our detector with the libraries' backbone, pyramid, proposals, pooling and optimizer in place of ours."""
    model, ours = cfg.model, cfg.model.backbone
    arch = resolve_arch(ours.arch)
    width, depth = arch['embed_dims'], arch['depth']
    arch = dict(embed_dims=width, num_layers=depth, num_heads=arch['num_heads'], feedforward_channels=4 * width)
    shared = dict(patch_size=16, drop_path_rate=ours.drop_path_rate, out_type='featmap')
    if task == 'det':
        model.backbone = dict(
            type='mmpretrain.VisionTransformer',
            arch=arch,
            img_size=224,
            final_norm=False,
            out_indices=list(ours.out_indices),
            **shared,
        )
        model.neck = [dict(type='mmseg.Feature2Pyramid', embed_dim=width), model.neck]
    else:
        arch['global_attn_indexes'] = [quarter * depth // 4 - 1 for quarter in range(1, 5)]
        model.backbone = dict(
            type='mmpretrain.ViTSAM',
            arch=arch,
            img_size=image,
            out_channels=0,
            use_rel_pos=True,
            window_size=ours.window_size,
            **shared,
        )
        model.neck = dict(ours.pyramid, in_channels=width)
    model.rpn_head.type = 'RPNHead'
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.type = 'SingleRoIExtractor'
    optimizer = cfg.optim_wrapper.optimizer
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=optimizer.lr, betas=(0.9, 0.999), weight_decay=optimizer.weight_decay),
    )
    return cfg


def compiled_ops() -> bool:
    return hasattr(sys.modules['mmcv._ext'], '__file__')


def choose_ops(kind: str) -> None:
    """Let NMS and RoIAlign be mmcv's compiled ones, or the stand-in for them, in both detectors."""
    if kind == 'torchvision':
        for name in ('nms', 'roi_align'):
            sys.modules[f'mmcv.ops.{name}'].ext_module = compat._make_standin_ops()


def config_of(name: str, args: argparse.Namespace, precision: str) -> Config:
    """The config of `ours` or `stock`, in some precision."""
    ours = name == 'ours'
    cfg = our_config(args.task, args.size, args.cfg_options) if ours else stock_config(args.task, args.size)
    wrapper = WRAPPERS[precision][0 if ours else 1]
    if wrapper:
        kept = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('type', 'dtype', 'loss_scale')}
        cfg.optim_wrapper = kept | wrapper
    return cfg


def precision_of(cfg: Config) -> str:
    """`bf16 autocast`, `fp16 autocast, scaler`, ..."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = 'bf16 autocast' if wrapper.get('dtype') == 'bfloat16' else NAMES.get(kind, kind)
    return f'{name}, scaler' if 'Amp' in kind else name


@functools.cache
def be_quiet() -> None:
    """No line for each weight that is initialized and for each group of parameters."""
    MMLogger.get_instance('downstream', log_level='ERROR')


def stepper(cfg: Config, batch: dict, device: measure.Device) -> Callable[[], dict]:
    """Builds model and optimizer; the function that it gives takes a training step."""
    be_quiet()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        model = build_model(cfg)
        model.init_weights()
        model = model.to(device).train()
        with redirect_stdout(io.StringIO()):  # mmseg prints all its groups
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return lambda: model.train_step(dict(batch), wrapper)


def batch_of(task: str, image: tuple[int, int], count: int, device: measure.Device) -> dict:
    """Noise with random labels, as a loader gives it, but on the device."""
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
    """Boxes of an eighth to a half of the image, their masks filled."""
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
    """GiB that model, optimizer and three steps need at the worst moment on a CPU, in a process of its own."""
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
    """Speed and memory of both in one precision, as a row."""
    configs = {name: config_of(name, args, precision) for name in ('ours', 'stock')}
    choose_ops(args.ops)
    batch = batch_of(args.task, args.image, args.batch, args.device)
    torch.backends.cudnn.benchmark = args.task == 'seg'  # as both configs of it say
    peaks, steps = {}, {}
    own_process = args.memory and not measure.on_gpu(args.device)  # resident memory is that of a whole process
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
    """Of the ratio over rounds."""
    low, high = np.percentile(np.divide(times['stock'], times['ours']), (25, 75))
    return f'{low:.2f}..{high:.2f}'


def report(row: dict) -> str:
    """What a row says."""
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
    """What :func:`compare` needs; what is not given is as for the device."""
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
    parser.add_argument('--batch', type=int, help='default: that of the stock configs for a GPU')
    parser.add_argument(
        '--precision', nargs='+', choices=WRAPPERS, help='default: configured and bf16 on a GPU, float32 on a CPU'
    )
    parser.add_argument('--rounds', type=int, help='turns of each; default 20 on a GPU, 8 on a CPU')
    parser.add_argument('--turn', type=int, help='steps of a turn; default 5 on a GPU, 1 on a CPU')
    parser.add_argument(
        '--ops',
        choices=('compiled', 'torchvision'),
        default='compiled' if compiled_ops() else 'torchvision',
        help='NMS and RoIAlign of detectors: of mmcv, where it is compiled, or not',
    )
    parser.add_argument('--profile', action='store_true', help='name what takes the time of both')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='changes of our config')
    args = parser.parse_args()
    gpu = measure.on_gpu(args.device)
    if not gpu and torch.cuda.is_available():  # mmengine has chosen the GPU when it was imported
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        os.execv(sys.executable, [sys.executable, *sys.argv])
    precisions = args.precision or (['configured', 'bf16'] if gpu else ['float32'])
    if not gpu and {'bf16', 'fp16'} & set(precisions):
        raise SystemExit('--precision bf16 and fp16 need a GPU: mmengine has no mixed precision without one')
    if args.ops == 'compiled' and not compiled_ops():
        raise SystemExit('--ops compiled needs an mmcv with compiled ops: see bootmae/compat.py')
    for task in args.task:
        for precision in precisions:
            row = compare(settings(**vars(args) | dict(task=task)), precision)
            print(report(row), flush=True)
            measure.add_row('downstream', row)


if __name__ == '__main__':
    main()
