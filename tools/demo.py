#!/usr/bin/env python3
"""Pretrain BootMAE and MAE on images that the wheels carry, judge both against an untrained encoder, report."""

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--size', choices=('full', 'small'), default='full')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='folder for the report and the runs')
    parser.add_argument('--lanes', type=int, default=max(1, min(os.cpu_count() or 1, 6)),
                        help='runs at a time, one CPU thread each (default: the number of cores)')
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.engine.demo import SIZES, Demo
    Demo(SIZES[args.size], args.out.resolve(), args.lanes).run()


if __name__ == '__main__':
    from bootmae.engine.cli import main
    main(command)
