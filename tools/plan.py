#!/usr/bin/env python3
"""Print what a config would run: batch, learning rate, schedule, size, arithmetic, images and GPU-hours."""

import argparse
import json
from dataclasses import asdict

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a file under configs/')
    parser.add_argument('--gpus', type=int, default=1, help='number of GPUs (default: 1)')
    parser.add_argument('--images-per-second', type=float, help='measured speed of one GPU, to estimate GPU-hours')
    parser.add_argument('--auto-scale-lr', action='store_true', help='as for tools/train.py')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='override config values'
    )
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.plan import as_text, make_plan
    from bootmae.config.load import load_config

    cfg = load_config(args.config, args.cfg_options)
    plan = make_plan(cfg, args.config, args.gpus, args.auto_scale_lr, args.images_per_second)
    print(json.dumps(asdict(plan), indent=2) if args.json else as_text(plan))


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
