#!/usr/bin/env python3
"""Measure this machine: equality, step, reading, downstream and scaling; then the tables. `make bench` runs this.

    benchmarks/all.py                                       # ten minutes on two CPU cores; with a GPU benchmarks/gpu.py
    benchmarks/all.py --images imagenet_part.tar            # read these images instead of packaged photographs
    benchmarks/all.py --part step scaling                   # two parts

Each part is a command of its own, printed before it runs, so that one that fails costs no other. Rows are added to
benchmarks/results/*.csv; docs/speed.md and benchmarks/README.md are written again from them.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    '--cfg-options',
    'model.backbone.arch=tiny',
    'model.pixel_decoder.num_heads=3',
    'model.feature_decoder.num_heads=3',
]
SMALL_STEP = ['--batch', '16', '--steps', '2', '--turns', '5', '--warmup', '1', '--precision', 'fp32']


def commands(gpu: bool, images: list[str]) -> dict[str, list[list[str]]]:
    """Return the commands of each part."""
    last = dict(scaling=[['benchmarks/scaling.py']], tables=[['benchmarks/tables.py', '--write']])
    if gpu:
        out = f'work_dirs/gpu_{time.strftime("%Y%m%d_%H%M%S")}'
        return (
            dict(
                gpu=[
                    ['benchmarks/gpu.py', '--budget', '1500', '--out', out, *images],
                    ['benchmarks/gpu.py', '--collect', out],
                ]
            )
            | last
        )
    golden = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'tests' / 'golden').glob('*.npz'))
    step = [
        ['benchmarks/step.py', 'configs/pretrain/bootmae_vitb.py', *SMALL_STEP, *TINY],
        [
            'benchmarks/step.py',
            'configs/pretrain/mae_vitb.py',
            *SMALL_STEP,
            '--cfg-options',
            'model.backbone.arch=deit-tiny',
            'model.neck.embed_dim=192',
        ],
    ]
    return (
        dict(
            equality=[['tools/parity.py', *golden]],
            step=step,
            reading=[['benchmarks/reading.py', *images]],
            downstream=[['benchmarks/downstream.py']],
            demo_step=[['benchmarks/demo_step.py']],
        )
        | last
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--part',
        nargs='+',
        metavar='PART',
        help='parts to run: equality, step, reading, downstream, demo_step, '
        'scaling, tables; with a GPU of gpu, scaling, tables (default: all)',
    )
    parser.add_argument('--images', help='folder or .tar of images to read')
    parser.add_argument('--dry-run', action='store_true', help='print the commands only')
    args = parser.parse_args()
    import torch

    parts = commands(torch.cuda.is_available(), ['--images', args.images] if args.images else [])
    unknown = set(args.part or ()) - set(parts)
    if unknown:
        parser.error(f'unknown part {", ".join(sorted(unknown))}: choose from {", ".join(parts)}')
    begin, failed = time.monotonic(), []
    for command in [command for part in args.part or parts for command in parts[part]]:
        text = shlex.join(command)
        print(f'=== {text} ({time.monotonic() - begin:.0f} s)', flush=True)
        if not args.dry_run and subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            failed.append(f'failed: {text}')
    print('\n'.join([f'=== done ({time.monotonic() - begin:.0f} s)', *failed]), flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
