#!/usr/bin/env python3
"""Measure the channels of a data set, and print them as the setting image_channels of a config.

    tools/channel_statistics.py /my/images
    tools/channel_statistics.py /my/images --number 5 --axis first --ranges 0 4095

The table shows the values in the files. The ranges in the setting become 0 and 255, and mean and standard deviation are
those after this scaling. Without --ranges, the ranges of each channel are two percentiles of the data set (--tails).
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='folder of images of any depth, .tar, list of images, or a config')
    parser.add_argument('--number', type=int, help='number of channels of a file (default: as in the first one)')
    parser.add_argument(
        '--axis', choices=('last', 'first'), help='place of the channels in arrays (default: as in the first file)'
    )
    parser.add_argument('--select', nargs='+', type=int, metavar='N', help='channels to use, counted from 0')
    parser.add_argument(
        '--ranges', nargs=2, type=float, metavar=('LOW', 'HIGH'), help='values that become 0 and 255, of all channels'
    )
    parser.add_argument(
        '--percentiles',
        nargs=2,
        type=float,
        metavar=('LOW', 'HIGH'),
        help='scale each image by these percentiles of its own',
    )
    parser.add_argument(
        '--tails',
        nargs=2,
        type=float,
        default=(0.1, 99.9),
        metavar=('LOW', 'HIGH'),
        help='percentiles of the data set that are shown and become the ranges (default: 0.1 99.9)',
    )
    parser.add_argument('--limit', type=int, help='maximum number of images, evenly spaced (default: all)')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images (default: 0)')
    add_config_options(parser)
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.channel_statistics import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
