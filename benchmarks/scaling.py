#!/usr/bin/env python3
"""Project the speed of many GPUs from the step of one GPU. This is not a measurement.

    benchmarks/scaling.py                                        # from the fastest GPU rows of results/step.csv
    benchmarks/scaling.py --images-per-s 3384 --batch 256        # from a step measured elsewhere (BootMAE, ViT-B)

All-reduced is the gradient of each trainable parameter, in float32, once an optimizer step; buffers and the momentum
encoder are not exchanged: every process works the latter out for itself. The exchange is one ring over the slowest
link; on several nodes NCCL makes a ring of each network adapter and is faster. It runs beside the backward pass of the
last micro-batch, as DistributedDataParallel does: what does not fit behind that pass remains, and always the last
bucket.
The recipe's global batch is kept, and a GPU is taken to be as fast with its share of it as it was in the measured step.
Waiting for the slowest process, reading images and saving are left out. Adds rows to benchmarks/results/scaling.csv.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import measure
from mmengine.config import Config
from mmengine.registry import init_default_scope

from bootmae.commands.plan import build_on_meta

CONFIGS = {('BootMAE', 'ViT-B'): 'bootmae_vitb', ('BootMAE', 'ViT-L'): 'bootmae_vitl', ('MAE', 'ViT-B'): 'mae_vitb'}
ARCHS = {'base': 'ViT-B', 'b': 'ViT-B', 'large': 'ViT-L', 'l': 'ViT-L'}  # names in configs
REFERENCE = {  # (images/s, batch) of an H100, from the reference prototype
    ('BootMAE', 'ViT-B'): (3384, 256),
    ('MAE', 'ViT-B'): (2230, 256),
}
# Fraction of the backward pass in the FLOPs of a step. A step of MAE is forward and backward, 1 : 2. BootMAE adds the
# forward pass of the momentum encoder: 38.6 of 93.0 GFLOP an image.
BACKWARD = dict(BootMAE=38.6 / 93.0, MAE=2 / 3)
BUCKET = 25 * 2**20  # bytes, DistributedDataParallel's default
IMAGES, EPOCHS, GLOBAL_BATCH = 1_281_167, 800, 4096
GPUS_OF_A_NODE = 8


@dataclass(frozen=True)
class Step:
    """A step on one GPU: where it was measured, its batch size, and images/s."""

    images_per_s: float
    batch: int
    device: str
    source: str


def trainable_parameters(config: str) -> int:
    """Count the trainable parameters of a pretraining config, built on the meta device."""
    cfg = Config.fromfile(measure.ROOT / 'configs' / 'pretrain' / f'{config}.py')
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return sum(parameter.numel() for parameter in build_on_meta(cfg).parameters() if parameter.requires_grad)


def ring_seconds(size: float, gpus: int, bandwidth: float) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes: each GPU sends ``2 (n - 1) / n`` of them."""
    return 2 * (gpus - 1) / gpus * size / bandwidth


def exposed_seconds(size: float, gpus: int, bandwidth: float, backward: float, bucket: float = BUCKET) -> float:
    """Return the exposed seconds of an all-reduce that overlaps with ``backward`` seconds, except its last bucket."""
    hidden = min(backward, ring_seconds(max(size - bucket, 0), gpus, bandwidth))
    return ring_seconds(size, gpus, bandwidth) - hidden


def project(step: Step, method: str, size: float, gpus: int, bandwidth: float, global_batch: int) -> dict:
    """Return the expected speed of several GPUs.

    Args:
        size: bytes all-reduced in an optimizer step.
        bandwidth: bytes/s that a GPU sends over the slowest link.

    Raises:
        ValueError: if the global batch cannot be divided among the GPUs.
    """
    if global_batch % gpus:
        raise ValueError(f'--global-batch {global_batch} cannot be divided among {gpus} GPUs: give a multiple')
    share = global_batch // gpus
    alone = share / step.images_per_s
    backward = BACKWARD[method] * min(share, step.batch) / step.images_per_s
    exposed = exposed_seconds(size, gpus, bandwidth, backward)
    images_per_s = global_batch / (alone + exposed)
    return dict(
        images_per_gpu=share,
        allreduce_ms=1e3 * ring_seconds(size, gpus, bandwidth),
        step_ms=1e3 * (alone + exposed),
        exposed_ms=1e3 * exposed,
        images_per_s=images_per_s,
        efficiency_percent=100 * images_per_s / (gpus * step.images_per_s),
        gpu_hours=EPOCHS * IMAGES / images_per_s * gpus / 3600,
        hours=EPOCHS * IMAGES / images_per_s / 3600,
    )


def newest_step(rows: Sequence[dict], method: str, arch: str) -> Step | None:
    """Return the fastest full-size step through the training loop on the last day with GPU rows.

    Args:
        rows: of results/step.csv, oldest first.
    """
    rows = [
        row
        for row in rows
        if row['method'] == method
        and ARCHS.get(row['arch'], row['arch']) == arch
        and row['img_size'] == '224'
        and row.get('route') in (None, '', 'loop')
        and 'cores' not in row['device']
    ]
    if not rows:
        return None
    row = max(
        (row for row in rows if row['date'][:10] == rows[-1]['date'][:10]), key=lambda row: float(row['images_per_s'])
    )
    return Step(
        float(row['images_per_s']), int(row['batch']), row['device'], f'measured {row["date"]}, commit {row["commit"]}'
    )


def step_of(method: str, arch: str, args: argparse.Namespace) -> Step | None:
    """Return the step to project from: given, measured, or of the reference; None if there is none."""
    if args.images_per_s:
        given = (method, arch) == (args.method, args.arch)
        return Step(args.images_per_s, args.batch, args.device, 'given on the command line') if given else None
    found = newest_step(measure.read_rows('step'), method, arch)
    if found or (method, arch) not in REFERENCE:
        return found
    return Step(*REFERENCE[method, arch], 'NVIDIA H100 80GB', 'given with the reference, not measured here')


def rows_of(method: str, arch: str, args: argparse.Namespace) -> list[dict]:
    """Return a row for each number of GPUs."""
    size, step = 4 * trainable_parameters(CONFIGS[method, arch]), step_of(method, arch, args)
    made, rows = {name: cell for name, cell in measure.facts('cpu').items() if name in ('date', 'commit')}, []
    for gpus in args.gpus:
        link = args.nvlink if gpus <= GPUS_OF_A_NODE else args.network
        row = made | dict(
            device=step.device if step else '',
            label='projection',
            method=method,
            arch=arch,
            gpus=gpus,
            global_batch=args.global_batch,
            mb_reduced=size / 1e6 if gpus > 1 else 0.0,
            gb_per_s=link,
            source=step.source if step else 'no step measured',
        )
        rows.append(
            row
            | (
                project(step, method, size, gpus, 1e9 * link, args.global_batch)
                if step
                else dict(allreduce_ms=1e3 * ring_seconds(size, gpus, 1e9 * link))
            )
        )
    return rows


def report(row: dict) -> str:
    """Format a row."""
    head = (
        f'{row["method"]:8}{row["arch"]:6}{row["gpus"]:4d} GPUs: {row["mb_reduced"]:7.1f} MB all-reduced '
        f'in {row["allreduce_ms"]:6.2f} ms'
    )
    if 'images_per_s' not in row:
        return f'{head}; no step measured'
    return (
        f'{head}, {row["exposed_ms"]:5.2f} of a step of {row["step_ms"]:7.1f}: {row["images_per_s"]:8.0f} '
        f'images/s, {row["efficiency_percent"]:5.1f} %, {row["gpu_hours"]:5.0f} GPU-hours in {row["hours"]:.1f} h'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images-per-s', type=float, help='speed of one GPU with the model of --method and --arch')
    parser.add_argument('--batch', type=int, default=256, help='batch size at that speed')
    parser.add_argument('--method', choices=BACKWARD, default='BootMAE')
    parser.add_argument('--arch', choices=sorted(set(ARCHS.values())), default='ViT-B')
    parser.add_argument('--device', default='NVIDIA H100 80GB', help='device with that speed')
    parser.add_argument('--gpus', type=int, nargs='+', default=[1, 8, 64])
    parser.add_argument('--global-batch', type=int, default=GLOBAL_BATCH)
    parser.add_argument(
        '--nvlink', type=float, default=450, help='GB/s of a GPU within a node (default: 450, NVLink 4)'
    )
    parser.add_argument(
        '--network', type=float, default=50, help='GB/s of a GPU between nodes (default: 50, InfiniBand 400 Gb/s)'
    )
    args = parser.parse_args()
    print(
        f'projection, {EPOCHS} epochs of {IMAGES:,} images, global batch {args.global_batch}, '
        f'{args.nvlink:g} GB/s within a node of {GPUS_OF_A_NODE}, {args.network:g} GB/s between nodes'
    )
    for method, arch in CONFIGS:
        if args.images_per_s and (method, arch) != (args.method, args.arch):
            continue
        rows = rows_of(method, arch, args)
        print(f'  {rows[0]["device"] or "unknown GPU"}: {rows[0]["source"]}')
        for row in rows:
            print(report(row))
            measure.add_row('scaling', row)


if __name__ == '__main__':
    main()
