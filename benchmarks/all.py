#!/usr/bin/env python3
"""Measure this machine: equality, step, reading, downstream and scaling; then the tables. What `make bench` runs.

    benchmarks/all.py                                       # ten minutes on two CPU cores; not yet run on a GPU
    benchmarks/all.py --images imagenet_part.tar            # read these; otherwise photographs of installed packages
    benchmarks/all.py --minutes 9 --part equality step      # two parts, none of which may begin after nine minutes

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
TINY = ['--cfg-options', 'model.backbone.arch=tiny', 'model.pixel_decoder.num_heads=3',
        'model.feature_decoder.num_heads=3']
SMALL_STEP = ['--batch', '16', '--steps', '2', '--turns', '5', '--warmup', '1', '--precision', 'fp32']


def commands(gpu: bool, images: list[str]) -> dict[str, list[list[str]]]:
    """The commands of each part, shorter ones first within a part."""
    golden = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'tests' / 'golden').glob('*.npz'))
    if gpu:
        equality = [['tools/parity.py', *golden, '--device', 'cuda'],
                    ['tools/parity.py', *golden, '--device', 'cuda', '--compile'],
                    ['-m', 'pytest', '-q', 'tests/data/test_device.py', 'tests/engine/test_optim.py']]
        step = [['benchmarks/step.py', '--all']]
        reading = [['benchmarks/reading.py', *images, '--device', 'cuda', '--step', '--compile', 'whole']]
    else:
        equality = [['tools/parity.py', *golden]]
        step = [['benchmarks/step.py', 'configs/pretrain/bootmae_vitb.py', *SMALL_STEP, *TINY],
                ['benchmarks/step.py', 'configs/pretrain/mae_vitb.py', *SMALL_STEP, '--cfg-options',
                 'model.backbone.arch=deit-tiny', 'model.neck.embed_dim=192']]
        reading = [['benchmarks/reading.py', *images]]
    return dict(equality=equality, step=step, reading=reading, downstream=[['benchmarks/downstream.py']],
                demo_step=[] if gpu else [['benchmarks/demo_step.py']], scaling=[['benchmarks/scaling.py']],
                tables=[['benchmarks/tables.py', '--write']])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', nargs='+', metavar='PART', help='of equality, step, reading, downstream, demo_step, '
                        'scaling, tables (default: all)')
    parser.add_argument('--images', help='folder or .tar of images to read')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='nothing begins later')
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
        if time.monotonic() - begin > 60 * args.minutes:
            failed.append(f'not begun: {text}')
            continue
        print(f'=== {text} ({time.monotonic() - begin:.0f} s)', flush=True)
        if not args.dry_run and subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            failed.append(f'failed: {text}')
    print('\n'.join([f'=== done ({time.monotonic() - begin:.0f} s)', *failed]), flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
