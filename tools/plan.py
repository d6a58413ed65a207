#!/usr/bin/env python3
"""Print the plan of a run without training: batch size, learning rate, schedule, model size, FLOPs and GPU-hours.

    tools/plan.py configs/pretrain/bootmae_vitb.py --gpus 8
    tools/plan.py configs/pretrain/bootmae_small_data.py --data /my/images

Settings and data are checked as in training. If the config's own images are missing, its number of images is used, and
a note says so; folders given here must exist."""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file under configs/')
    parser.add_argument('--gpus', type=int, default=1, help='number of GPUs (default: 1)')
    parser.add_argument('--images-per-second', type=float, help='measured speed of one GPU, used to estimate GPU-hours')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate as tools/train.py --auto-scale-lr does'
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_config_options(parser)
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.plan import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
