#!/usr/bin/env python3
"""Repeat a training step whose loss or gradients were not finite, and find the module where it starts.

    tools/replay.py work_dirs/bootmae_vitb/nonfinite/step_123456_rank3.json

A run writes such a file for each bad step and process. The replay uses the same batch, crops, masks and drop path, in
the precision of the run and in float32. It prints the losses, the first module whose output is not finite, the
parameters whose gradients are not finite, and the value range of each image.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dump', help='nonfinite/step_*_rank*.json in a work directory')
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='weights to use (default: the weights the run stopped with, else its last checkpoint before the step)',
    )
    parser.add_argument(
        '--precision', choices=('float32', 'bf16', 'fp16'), help='precision to use instead of that of the run'
    )
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.replay import replay

    replay(args.dump, args.checkpoint, args.precision)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
