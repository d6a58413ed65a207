#!/usr/bin/env python3
"""Measure images/s of reading by mmpretrain's transforms, by ReadCrop on a CPU, and on a GPU.

    benchmarks/reading.py                                                    # images/s of one core, and errors
    benchmarks/reading.py --images data/imagenet/train --limit 1000 --source ImageNet
    benchmarks/reading.py --images FOLDER_OR_TAR --device cuda --step --compile whole      # also on the GPU
    benchmarks/reading.py --channels 5                                       # TIFF and NumPy files, on one core

Without --images: the photographs that installed packages carry, at ImageNet's usual size. Single samples are those of
the training configs, seeding included, and their seconds are those of the process, so that others on the machine count
little. --device adds the stage that decodes there, and a loader with workers that feeds it; --step adds the training
loop of the pretraining config, fed from files and, before and after, with one batch of noise. --cfg-options are for
that loop, such as a small model on a CPU. --channels compares the same photographs with so many channels, as TIFF and
as NumPy files, with their JPEG files.
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
import numpy as np
import tifffile
import torch
from measure import add_row, alternate, default_device, facts, speed_ratio, synchronize, timed
from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from torchvision.io import decode_jpeg
from training import TrainingRun

from bootmae.config.load import load_config
from bootmae.config.options import OptionsAction
from bootmae.config.reader import apply_reader
from bootmae.config.run_defaults import make_resumable
from bootmae.data.device import DeviceStage, collate_encoded
from bootmae.data.embedded import PHOTOS, photo
from bootmae.data.jpeg import parse_header

CONFIGS = {'pretraining': 'configs/pretrain/bootmae_vitb.py', 'fine-tuning': 'configs/cls/bootmae_vitb_finetune.py'}
ROUTES = [
    ('pretraining', 'stock'),
    ('pretraining', 'cpu'),
    ('pretraining', 'gpu'),
    ('fine-tuning', 'stock'),
    ('fine-tuning', 'cpu'),
]
READERS = ('gpu', 'cpu', 'stock')
PIXELS = 500 * 400  # average ImageNet image


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """Yield the photographs of installed packages with their names, at ImageNet's usual size."""
    for name in PHOTOS:
        picture = Image.fromarray(photo(name))
        scale = math.sqrt(PIXELS / (picture.width * picture.height))
        size = round(picture.width * scale), round(picture.height * scale)
        yield name, picture.resize(size, Image.Resampling.LANCZOS)


def make_files(folder: str) -> None:
    """Write photographs from installed packages, each with full and with halved color resolution."""
    for name, picture in photographs():
        for subsampling in (0, 2):
            picture.save(Path(folder, f'{name}_{subsampling}.jpg'), quality=92, subsampling=subsampling)


def make_channels(folder: str, kind: str, channels: int) -> None:
    """Write the photographs of :func:`make_files` with 12 bits (TIFF) or as floats of 0 to 1 (NumPy)."""
    for name, picture in photographs():
        unit = np.asarray(picture)[..., [k % 3 for k in range(channels)]] / np.float32(255)
        for copy in range(2):
            path = Path(folder, f'{name}_{copy}')
            if kind == 'float32 NumPy':
                np.save(path.with_suffix('.npy'), unit)
                continue
            values, compression = (unit * 4095).round().astype(np.uint16), 'zlib' if 'zlib' in kind else None
            layout = dict(photometric='minisblack', planarconfig='contig')
            tifffile.imwrite(path.with_suffix('.tif'), values, compression=compression, **layout)


def config(
    task: str, reader: str, roots: str, limit: int | None, repeat: int = 1, options: dict | None = None
) -> Config:
    """Return a training config that reads these images ``repeat`` times per epoch with one reader."""
    cfg = load_config(CONFIGS[task], options)
    inner = cfg.train_dataloader.dataset
    dataset = dict(type='ImageFiles', roots=roots, limit=limit, pipeline=inner.pipeline)
    if 'extensions' in inner:
        dataset['extensions'] = inner.extensions
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=repeat, dataset=dataset) if repeat > 1 else dataset
    cfg.reader, cfg.reader_device = reader, default_device()
    apply_reader(cfg)
    return cfg


def samples(cfg: Config):
    """Return the training samples of the config, as its workers load them."""
    return DATASETS.build(dict(type='SeededSamples', dataset=cfg.train_dataloader.dataset, bad='raise'))


def describe(dataset) -> dict:
    """Return the columns with the image size."""
    files = [fileio.get(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    headers = [header for header in map(parse_header, files) if header]
    return (
        dict(
            images=len(files),
            mean_pixels=round(statistics.fmean(h.height * h.width for h in headers)),
            mean_kb=round(statistics.fmean(map(len, files)) / 1e3),
        )
        if headers
        else dict(images=len(files))
    )


def error_of(ours, theirs) -> dict:
    """Return the mean and largest difference of the inputs of all samples, in levels of 255."""
    errors = [(ours[i]['inputs'].int() - theirs[i]['inputs'].int()).abs() for i in range(len(ours))]
    return dict(
        error_mean=statistics.fmean(error.float().mean().item() for error in errors),
        error_max=max(error.max().item() for error in errors),
    )


def one_core(args: argparse.Namespace) -> Iterator[dict]:
    """Measure single samples in this process and return rows."""
    sets = {route: samples(config(*route, args.images, args.limit)) for route in ROUTES}
    size = describe(sets[ROUTES[0]])

    def read(dataset) -> None:
        for i in range(len(dataset)):
            dataset[i]

    runs = {route: lambda dataset=dataset: read(dataset) for route, dataset in sets.items()}
    alternate(runs, 1, 'cpu')
    times = alternate(runs, args.rounds, 'cpu', time.process_time)
    for task, reader in ROUTES:
        row = dict(
            source=args.source,
            route=f'{task}, {reader}' + (" (the worker's part)" if reader == 'gpu' else ''),
            workers='one core',
            images_per_s=size['images'] / statistics.median(times[task, reader]),
            **size,
        )
        if reader != 'gpu':  # only a part of the work, so not comparable
            row['ratio'] = speed_ratio(times, (task, reader), (task, 'stock'))
        if (task, reader) == ('pretraining', 'cpu'):
            row |= error_of(sets[task, 'cpu'], sets[task, 'stock'])
        yield facts('cpu') | row


def several_channels(args: argparse.Namespace) -> Iterator[dict]:
    """Measure images of ``args.channels`` channels against JPEG files of the same photographs, on one core."""
    high = {'uint16 TIFF': 4095, 'uint16 TIFF, zlib': 4095, 'float32 NumPy': 1}
    with tempfile.TemporaryDirectory() as root:
        make_files(jpeg := tempfile.mkdtemp(dir=root))
        sets, folders = {'JPEG': samples(config('pretraining', 'cpu', jpeg, args.limit))}, {'JPEG': jpeg}
        for kind, top in high.items():
            make_channels(folder := tempfile.mkdtemp(dir=root), kind, args.channels)
            options = {'image_channels.number': args.channels, 'image_channels.ranges': [0, top]}
            sets[kind] = samples(config('pretraining', 'cpu', folder, args.limit, options=options))
            folders[kind] = folder
        runs = {kind: lambda data=data: [data[i] for i in range(len(data))] for kind, data in sets.items()}
        alternate(runs, 1, 'cpu')
        times = alternate(runs, args.rounds, 'cpu', time.process_time)
        for kind, data in sets.items():
            files = list(Path(folders[kind]).iterdir())
            yield facts('cpu') | dict(
                source=args.source,
                route=f'pretraining, cpu, {"3" if kind == "JPEG" else args.channels} channels, {kind}',
                workers='one core',
                images_per_s=len(data) / statistics.median(times[kind]),
                images=len(data),
                mean_pixels=PIXELS,
                mean_kb=round(statistics.fmean(file.stat().st_size for file in files) / 1e3),
            )


def device_alone(args: argparse.Namespace) -> dict:
    """Measure the device stage on one batch in memory and return its row."""
    dataset = samples(config('pretraining', 'gpu', args.images, args.limit))
    batch = collate_encoded([dataset[i % len(dataset)] for i in range(args.batch)])
    stage = DeviceStage(224, args.device)
    times = timed(lambda: stage(batch), 3, args.rounds, args.device)
    return facts(args.device) | dict(
        source=args.source,
        route='decoded, cropped and resized on the device',
        workers='none',
        batch=args.batch,
        images_per_s=args.batch / statistics.median(times),
        **describe(dataset),
    )


def cpu_seconds(processes) -> float:
    """Return the CPU seconds that processes have used so far; NaN without Linux."""
    with suppress(OSError):
        fields = [Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split() for process in processes]
        return sum(int(field[11]) + int(field[12]) for field in fields) / 100
    return math.nan


def through_loader(args: argparse.Namespace, reader: str) -> dict:
    """Measure the training loader with its workers, and the device stage behind it."""
    cfg = config('pretraining', reader, args.images, args.limit, repeat=10_000)
    cfg.train_dataloader |= dict(batch_size=args.batch, num_workers=args.workers, persistent_workers=False)
    make_resumable(cfg)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    stage = DeviceStage(224, args.device, loader.dataset)
    batches = iter(loader)
    for batch in itertools.islice(batches, 2 * args.workers):  # the workers have filled their queues in the meantime
        stage(batch)
    synchronize(args.device)
    used, begin = cpu_seconds(batches._workers), time.perf_counter()
    for batch in itertools.islice(batches, args.steps):
        stage(batch)
    synchronize(args.device)
    seconds, count = time.perf_counter() - begin, args.batch * args.steps
    return facts(args.device) | dict(
        source=args.source,
        route=f'loader and device, {reader}',
        workers=args.workers,
        batch=args.batch,
        images_per_s=count / seconds,
        worker_cpu_ms=1e3 * (cpu_seconds(batches._workers) - used) / count,
    )


def decoding_alone(args: argparse.Namespace) -> dict:
    """Measure nvJPEG alone (on a CPU: torchvision's decoder) on one batch in memory."""
    dataset = samples(config('pretraining', 'gpu', args.images, args.limit))
    inputs = collate_encoded([dataset[i % len(dataset)] for i in range(args.batch)])['inputs']
    files = [data for data in inputs['data'].split(inputs['lengths'].tolist()) if len(data)]
    times = timed(lambda: decode_jpeg(files, device=args.device), 2, args.rounds, args.device)
    return facts(args.device) | dict(
        source=args.source,
        route='decoded on the device',
        workers='none',
        batch=len(files),
        images_per_s=len(files) / statistics.median(times),
    )


def training(args: argparse.Namespace, reader: str | None) -> TrainingRun:
    """Return the warmed-up training loop with input from files or noise (None)."""
    data = None
    if reader:
        pipeline = load_config(args.config, args.cfg_options).train_dataloader.dataset.pipeline
        files = dict(type='ImageFiles', roots=args.images, limit=args.limit, pipeline=pipeline)
        data = {
            'reader': reader,
            'reader_device': args.device,
            'train_dataloader.num_workers': args.workers,
            'train_dataloader.dataset': dict(_delete_=True, type='RepeatDataset', times=10_000, dataset=files),
        }
    return TrainingRun(args.config, args.batch, args.compile, options=args.cfg_options, data=data, warmup=args.warmup)


def fed_training(args: argparse.Namespace) -> Iterator[dict]:
    """Measure the training loop with each reader, relative to its speed with noise just before.

    Long turns, one after the other: in short ones that alternate, the workers would fill their queues for nothing.
    """
    synthetic = training(args, None)

    def rate(steps: TrainingRun) -> float:
        times = alternate({'steps': lambda: steps.advance(args.steps)}, 1, args.device)['steps']
        return args.batch * args.steps / times[0]

    def row(route: str, images_per_s: float, share: float, workers: int) -> dict:
        return facts(args.device) | dict(
            source=args.source,
            route=f'training loop, {route}',
            workers=workers,
            batch=args.batch,
            images_per_s=images_per_s,
            share_of_noise=share,
            compile=args.compile,
        )

    for reader in args.readers:
        fed = training(args, reader)
        noise_rate = rate(synthetic)
        fed.advance(args.warmup)  # discard what the workers prepared in the meantime
        reader_rate = rate(fed)
        fed.close()
        yield row(reader, reader_rate, reader_rate / noise_rate, args.workers)
    noise_rate = rate(synthetic)
    synthetic.close()
    yield row('noise on the device', noise_rate, 1.0, 0)


def rows_of(args: argparse.Namespace) -> Iterator[dict]:
    if args.channels:
        yield from several_channels(args)
        return
    if not args.skip_one_core:
        yield from one_core(args)
    if args.device:
        try:
            yield decoding_alone(args)
        except RuntimeError as error:  # one refused file fails its batch; the reader copes with that
            print(f'no row for decoding alone: {error}')
        yield device_alone(args)
        for reader in args.readers:
            yield through_loader(args, reader)
        if args.step:
            yield from fed_training(args)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', help='folder or .tar of images (default: photographs from installed packages)')
    parser.add_argument('--source', help='name of the images in the rows')
    parser.add_argument('--limit', type=int, default=256, help='maximum number of images (default: 256)')
    parser.add_argument('--channels', type=int, help='measure images of so many channels instead')
    parser.add_argument('--rounds', type=int, default=5, help='number of rounds; the median counts (default: 5)')
    parser.add_argument('--skip-one-core', action='store_true', help='run only the parts with a device')
    parser.add_argument(
        '--device', choices=('cuda', 'cpu'), help='add the stage that decodes on this device, and a loader'
    )
    parser.add_argument('--workers', type=int, default=4, help='workers of the loader (default: 4)')
    parser.add_argument(
        '--batch', type=int, default=256, help='batch size of stage, loader and training loop (default: 256)'
    )
    parser.add_argument('--steps', type=int, default=40, help='number of timed batches (default: 40)')
    parser.add_argument('--warmup', type=int, default=20, help='training steps of warm-up (default: 20)')
    parser.add_argument('--step', action='store_true', help='add the training loop')
    parser.add_argument(
        '--readers', nargs='+', choices=READERS, default=READERS, help='readers to measure (default: all)'
    )
    parser.add_argument(
        '--compile', default='none', metavar='SCOPE[:MODE]', help='compilation of the training loop, as in step.py'
    )
    parser.add_argument('--config', default=CONFIGS['pretraining'], help='config of the training loop')
    parser.add_argument(
        '--no-row', action='store_true', help='print only; do not change benchmarks/results/reading.csv'
    )
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override values of the training config')
    args = parser.parse_args(argv)
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
            print(
                '  '.join(
                    f'{name}={value:.4g}' if isinstance(value, float) else f'{name}={value}'
                    for name, value in row.items()
                    if name not in facts()
                ),
                flush=True,
            )
            if not args.no_row:
                add_row('reading', row)
    return 0


if __name__ == '__main__':
    sys.exit(main())
