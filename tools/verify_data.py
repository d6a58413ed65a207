#!/usr/bin/env python3
"""Scan data sets for files that would stop a run or spoil it, before the run.

    tools/verify_data.py configs/seg/upernet_quick.py      # the data sets of a config
    tools/verify_data.py data/imagenet --workers 16        # images in a folder; train/ and val/ below it are splits
    tools/verify_data.py data/photos --write-list good.txt # then: train_dataloader.dataset.list_file=good.txt

Exit code 0: no faults (there may be notes), 1: faults, 2: a data set cannot be built.
"""

import argparse
import os

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='a config under configs/, a folder of images, or a list with one path a line')
    parser.add_argument(
        '--split',
        nargs='+',
        choices=('train', 'val', 'test'),
        default=['train', 'val', 'test'],
        help='loaders of the config (default: all)',
    )
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes (default: one a core)')
    parser.add_argument('--out', metavar='FILE', help='write all that is found, as text, or as JSON to a .json')
    parser.add_argument('--write-list', metavar='FILE', help='list the good images of a folder, as ImageFiles reads it')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='override config values'
    )
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.commands.verify_data import run

    return run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
