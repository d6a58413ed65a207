#!/usr/bin/env python3
"""Repeat a training step whose loss or gradients were not finite, and see where it begins.

    tools/replay.py work_dirs/bootmae_vitb/nonfinite/step_123456_rank3.json

The run writes such a file for each bad step and process. The same batch, crops, masks and drop path are worked out
again, in the run's precision and in float32. Prints the losses, the first module whose output is not finite, the
parameters with such gradients, and the range of each image.
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dump', help='nonfinite/step_*_rank*.json of a work directory')
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='weights to take (default: those that the run ended with, else its last checkpoint before the step)',
    )
    parser.add_argument('--precision', choices=('float32', 'bf16', 'fp16'), help="instead of the run's")
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.replay import replay

    replay(args.dump, args.checkpoint, args.precision)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
