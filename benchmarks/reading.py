#!/usr/bin/env python3
"""Reading images: how many a second, by mmpretrain's transforms, by ReadCrop on a CPU, and on a GPU.

    benchmarks/reading.py                                                    # images a second of one core, and errors
    benchmarks/reading.py --images data/imagenet/train --limit 1000 --source ImageNet
    benchmarks/reading.py --images FOLDER_OR_TAR --device cuda --step --compile whole      # and the GPU's part

Without --images: the photographs that installed packages carry, at ImageNet's usual size. Single samples are those of
the training configs, seeding included, and their seconds are those of the process, so that others on the machine count
little. --device adds the stage that decodes there, and a loader with workers that feeds it; --step adds the training
loop of the pretraining config, fed from files and, before and after, with one batch of noise. --cfg-options are for
that loop, such as a small model on a CPU.
"""

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import torch
from measure import add_row, alternate, default_device, facts, speed_ratio, synchronise, timed
from mmengine import fileio
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from step import Done, NoiseLoop

from bootmae.commands import train
from bootmae.config.load import load_config
from bootmae.config.reader import apply_reader
from bootmae.config.run_defaults import make_resumable
from bootmae.data.device import DeviceStage, collate_encoded
from bootmae.data.embedded import PHOTOS, photo
from bootmae.data.jpeg import parse_header
from bootmae.engine.unwrap import bare_model

CONFIGS = {'pretraining': 'configs/pretrain/bootmae_vitb.py', 'fine-tuning': 'configs/cls/bootmae_vitb_finetune.py'}
ROUTES = [('pretraining', 'stock'), ('pretraining', 'cpu'), ('pretraining', 'gpu'), ('fine-tuning', 'stock'),
          ('fine-tuning', 'cpu')]
PIXELS = 500 * 400  # of an image of ImageNet, on average


def make_files(folder: str) -> None:
    """The photographs of the wheels, each in full and in halved colour resolution."""
    for name in PHOTOS:
        picture = Image.fromarray(photo(name))
        scale = math.sqrt(PIXELS / (picture.width * picture.height))
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        for subsampling in (0, 2):
            picture.save(Path(folder, f'{name}_{subsampling}.jpg'), quality=92, subsampling=subsampling)


def config(task: str, reader: str, roots: str, limit: int | None, repeat: int = 1) -> Config:
    """A training config that reads these images, ``repeat`` times an epoch, in one way."""
    cfg = load_config(CONFIGS[task])
    inner = cfg.train_dataloader.dataset
    dataset = dict(type='ImageFiles', roots=roots, limit=limit, pipeline=inner.pipeline)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=repeat, dataset=dataset) if repeat > 1 else dataset
    cfg.reader, cfg.reader_device = reader, default_device()
    apply_reader(cfg)
    return cfg


def samples(cfg: Config):
    """The config's training samples, as its workers load them."""
    return DATASETS.build(dict(type='SeededSamples', dataset=cfg.train_dataloader.dataset, bad='raise'))


def describe(dataset) -> dict:
    """How large the images are: columns of a row."""
    files = [fileio.get(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    headers = [header for header in map(parse_header, files) if header]
    return dict(images=len(files), mean_pixels=round(statistics.fmean(h.height * h.width for h in headers)),
                mean_kb=round(statistics.fmean(map(len, files)) / 1e3)) if headers else dict(images=len(files))


def error_of(ours, theirs) -> dict:
    """Mean and largest difference of the inputs of all samples, in levels of 255."""
    errors = [(ours[i]['inputs'].int() - theirs[i]['inputs'].int()).abs() for i in range(len(ours))]
    return dict(error_mean=statistics.fmean(error.float().mean().item() for error in errors),
                error_max=max(error.max().item() for error in errors))


def one_core(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of single samples in this process."""
    sets = {route: samples(config(*route, args.images, args.limit)) for route in ROUTES}
    size = describe(sets[ROUTES[0]])

    def read(dataset) -> None:
        for i in range(len(dataset)):
            dataset[i]
    runs = {route: lambda dataset=dataset: read(dataset) for route, dataset in sets.items()}
    alternate(runs, 1, 'cpu')
    times = alternate(runs, args.rounds, 'cpu', time.process_time)
    for task, reader in ROUTES:
        row = dict(source=args.source, route=f'{task}, {reader}' + (' (the worker\'s part)' if reader == 'gpu' else ''),
                   workers='one core', images_per_s=size['images'] / statistics.median(times[task, reader]), **size)
        if reader != 'gpu':  # a part of the work is not to be compared with all of it
            row['ratio'] = speed_ratio(times, (task, reader), (task, 'stock'))
        if (task, reader) == ('pretraining', 'cpu'):
            row |= error_of(sets[task, 'cpu'], sets[task, 'stock'])
        yield facts('cpu') | row


def device_alone(args: argparse.Namespace) -> dict:
    """The row of the stage, on one batch that is in memory."""
    dataset = samples(config('pretraining', 'gpu', args.images, args.limit))
    batch = collate_encoded([dataset[i % len(dataset)] for i in range(args.batch)])
    stage = DeviceStage(224, args.device)
    times = timed(lambda: stage(batch), 3, args.rounds, args.device)
    return facts(args.device) | dict(
        source=args.source, route='decoded, cropped and resized on the device', workers='none', batch=args.batch,
        images_per_s=args.batch / statistics.median(times), **describe(dataset))


def cpu_seconds(processes) -> float:
    """CPU seconds that processes have used so far; not a number without Linux."""
    with suppress(OSError):
        fields = [Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split() for process in processes]
        return sum(int(field[11]) + int(field[12]) for field in fields) / 100
    return math.nan


def through_loader(args: argparse.Namespace, reader: str) -> dict:
    """The row of the training loader with its workers, and of the stage behind it."""
    cfg = config('pretraining', reader, args.images, args.limit, repeat=10_000)
    cfg.train_dataloader |= dict(batch_size=args.batch, num_workers=args.workers, persistent_workers=False)
    make_resumable(cfg)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    stage = DeviceStage(224, args.device, loader.dataset)
    batches = iter(loader)
    for batch in itertools.islice(batches, 2 * args.workers):  # they have filled their queues in the meantime
        stage(batch)
    synchronise(args.device)
    used, begin = cpu_seconds(batches._workers), time.perf_counter()
    for batch in itertools.islice(batches, args.steps):
        stage(batch)
    synchronise(args.device)
    seconds, count = time.perf_counter() - begin, args.batch * args.steps
    return facts(args.device) | dict(
        source=args.source, route=f'loader and device, {reader}', workers=args.workers, batch=args.batch,
        images_per_s=count / seconds, worker_cpu_ms=1e3 * (cpu_seconds(batches._workers) - used) / count)


class Watch(Hook):
    """Times training steps after a warm-up; then raises :class:`Done`."""

    priority = 'LOWEST'

    def __init__(self, warmup: int, steps: int):
        self.warmup, self.steps, self.seconds = warmup, steps, math.nan

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx + 1 not in (self.warmup, self.warmup + self.steps):
            return
        synchronise(next(bare_model(runner).parameters()).device)
        if batch_idx + 1 == self.warmup:
            self.begin = time.perf_counter()
        else:
            self.seconds = (time.perf_counter() - self.begin) / self.steps
            raise Done


def training(args: argparse.Namespace, reader: str | None) -> float:
    """Images a second of the training loop, fed from files, or with noise (None)."""
    watch, build = Watch(args.warmup, args.steps), train.build_runner
    options = dict(args.cfg_options or {}) | {
        'train_dataloader.batch_size': args.batch, 'auto_scale_lr.base_batch_size': args.batch,
        'default_hooks.checkpoint': None, 'vis_backends': [], 'visualizer.vis_backends': [],
        'compile': args.compile != 'none' and args.compile, 'reader': reader or 'stock', 'reader_device': args.device}
    dataset = dict(type='ImageFiles', roots=args.images, limit=args.limit,
                   pipeline=load_config(CONFIGS['pretraining'], options).train_dataloader.dataset.pipeline)
    options['train_dataloader.dataset'] = dict(_delete_=True, type='RepeatDataset', times=10_000, dataset=dataset)
    options['train_dataloader.num_workers'] = args.workers if reader else 0
    options['train_dataloader.persistent_workers'] = False
    if reader is None:
        options['train_cfg'] = dict(_delete_=True, type=NoiseLoop.__name__, max_epochs=1000)

    def build_watched(*positional, **named):
        runner = build(*positional, **named)
        runner.register_hook(watch)
        return runner
    train.build_runner = build_watched
    try:
        with tempfile.TemporaryDirectory() as work_dir, suppress(Done):
            train.train(CONFIGS['pretraining'], work_dir, options)
    finally:
        train.build_runner = build
    return args.batch / watch.seconds


def fed_training(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the training loop: its rate with each reader, as a share of that with noise."""
    before = training(args, None)
    readers = ('gpu', 'cpu', 'stock')
    rates = [training(args, reader) for reader in readers]
    noise = statistics.fmean((before, training(args, None)))
    for reader, rate in [('noise on the device', noise), *zip(readers, rates)]:
        yield facts(args.device) | dict(
            source=args.source, route=f'training loop, {reader}', workers=args.workers if reader in readers else 0,
            batch=args.batch, images_per_s=rate, share_of_noise=rate / noise, compile=args.compile)


def rows_of(args: argparse.Namespace) -> Iterator[dict]:
    if not args.skip_one_core:
        yield from one_core(args)
    if args.device:
        yield device_alone(args)
        for reader in ('gpu', 'cpu', 'stock'):
            yield through_loader(args, reader)
        if args.step:
            yield from fed_training(args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', help='folder or .tar of images (default: photographs of installed packages)')
    parser.add_argument('--source', help='what the rows call the images')
    parser.add_argument('--limit', type=int, default=256, help='use at most so many images (default: 256)')
    parser.add_argument('--rounds', type=int, default=5, help='of which the median counts (default: 5)')
    parser.add_argument('--skip-one-core', action='store_true', help='only the parts with a device')
    parser.add_argument('--device', choices=('cuda', 'cpu'), help='add the stage that decodes there, and a loader')
    parser.add_argument('--workers', type=int, default=4, help='of the loader (default: 4)')
    parser.add_argument('--batch', type=int, default=256, help='of stage, loader and training loop (default: 256)')
    parser.add_argument('--steps', type=int, default=40, help='batches that are timed (default: 40)')
    parser.add_argument('--warmup', type=int, default=20, help='training steps before these (default: 20)')
    parser.add_argument('--step', action='store_true', help='add the training loop')
    parser.add_argument('--compile', default='none', choices=('none', 'whole', 'blocks'))
    parser.add_argument('--no-row', action='store_true', help='print only; benchmarks/results/reading.csv stays')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes of the training config')
    args = parser.parse_args()
    if args.step and not args.device:
        parser.error('--step needs --device')
    args.source = args.source or ('photographs of installed packages' if args.images is None else 'images on disk')
    return args


def main() -> int:
    args = parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        if args.images is None:
            make_files(folder)
            args.images = folder
        for row in rows_of(args):
            print('  '.join(f'{name}={value:.4g}' if isinstance(value, float) else f'{name}={value}'
                            for name, value in row.items() if name not in facts()), flush=True)
            if not args.no_row:
                add_row('reading', row)
    return 0


if __name__ == '__main__':
    sys.exit(main())
