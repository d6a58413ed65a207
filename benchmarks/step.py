#!/usr/bin/env python3
"""Measure the pretraining step: images/s, memory, fraction of the matrix peak, overhead of the training loop.

    benchmarks/step.py configs/pretrain/bootmae_vitb.py --batch 256 --compile none blocks whole whole:reduce-overhead
    benchmarks/step.py configs/pretrain/bootmae_vitb.py --batch 4 --steps 4 --precision fp32 --cfg-options \\
        model.backbone.arch=tiny model.pixel_decoder.num_heads=3 model.feature_decoder.num_heads=3   # on a CPU

All variants are built in one process and take turns, so that a device that changes its speed does no harm to their
ratios. Each one runs the training loop of `tools/train.py` on one batch of noise that is on the device already, with
masks as workers draw them. Turns of bare steps (forward, backward, update, momentum; images normalized already) lie
between those of the loop. --profile names the kernels of a bare step. `benchmarks/gpu.py` measures all of it on a GPU.
"""

import argparse
import statistics
import sys

import measure as m
from training import DTYPES, WRAPPERS, TrainingRun

from bootmae.config.options import OptionsAction

VITB = 'configs/pretrain/bootmae_vitb.py'


def measure(runs: dict[str, TrainingRun], turns: int, steps: int) -> dict[str, dict]:
    """Measure alternating runs and return a row for each.

    Args:
        runs: by name.
        turns: of each run, of the loop and of bare steps.
        steps: in a turn.
    """
    jobs, device = {}, next(iter(runs.values())).device
    for name, training in runs.items():
        bare = training.bare_step()
        bare()
        jobs[name, 'loop'] = lambda training=training: training.advance(steps)
        jobs[name, 'bare'] = lambda bare=bare: [bare() for _ in range(steps)]
    times = m.alternate(jobs, turns, device)
    peaks = {
        precision: m.matmul_peak(device, DTYPES[precision] if m.on_gpu(device) else None)
        for precision in {training.precision for training in runs.values()}
    }
    return {
        name: row_of(
            training,
            [seconds / steps for seconds in times[name, 'loop']],
            [seconds / steps for seconds in times[name, 'bare']],
            peaks[training.precision],
        )
        for name, training in runs.items()
    }


def row_of(training: TrainingRun, loop: list[float], bare: list[float], peak: float) -> dict:
    """Make a row of benchmarks/results/step.csv from the seconds of the steps of each turn."""
    facts = training.facts()
    rate = training.batch / statistics.median(loop)
    tflops = facts['gflop_per_image'] * rate / 1e3
    return (
        m.facts(training.device)
        | facts
        | dict(
            images_per_s=rate,
            bare_images_per_s=training.batch / statistics.median(bare),
            ms_per_step=1e3 * statistics.median(loop),
            overhead_percent=100 * (statistics.median(a / b for a, b in zip(loop, bare, strict=True)) - 1),
            peak_gib=training.peak_gib,
            tflops=tflops,
            peak_tflops=peak,
            peak_share=tflops / peak,
        )
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', default=VITB)
    parser.add_argument('--batch', type=int, default=256, help='images per step (default: 256)')
    parser.add_argument(
        '--compile',
        nargs='+',
        default=['none'],
        metavar='SCOPE[:MODE]',
        help='none, blocks or whole, with an optional mode of torch.compile, such as whole:reduce-overhead',
    )
    parser.add_argument('--precision', choices=WRAPPERS, default='bf16')
    parser.add_argument(
        '--turns', type=int, default=5, help='number of turns of loop steps and bare steps (default: 5)'
    )
    parser.add_argument('--steps', type=int, default=10, help='steps per turn (default: 10)')
    parser.add_argument('--warmup', type=int, default=5, help='steps before the first turn (default: 5)')
    parser.add_argument('--profile', action='store_true', help='print the most expensive kernels')
    parser.add_argument('--no-row', action='store_true', help='print only; do not change benchmarks/results/step.csv')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override config values')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    runs = {}
    for compile in args.compile:
        runs[compile] = TrainingRun(
            args.config, args.batch, compile, args.precision, args.cfg_options, warmup=args.warmup
        )
    for compile, row in measure(runs, args.turns, args.steps).items():
        print(
            '\n'.join(
                f'{name:18} {value:.4g}' if isinstance(value, float) else f'{name:18} {value}'
                for name, value in row.items()
            ),
            flush=True,
        )
        if args.profile:
            print('\n'.join(m.top_kernels(runs[compile].bare_step(), runs[compile].device)), flush=True)
        if not args.no_row:
            print(f'-> {m.add_row("step", row)}', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
