#!/usr/bin/env python3
"""Scan data sets before a run for files that would stop it or spoil its results.

    tools/verify_data.py configs/seg/upernet_quick.py      # all data sets of a config
    tools/verify_data.py data/imagenet --workers 16        # images in a folder; its train/ and val/ are splits
    tools/verify_data.py data/photos --write-list good.txt # then: train_dataloader.dataset.list_file=good.txt
    tools/verify_data.py good.txt --root data/photos       # images of a list

Exit code 0: no faults (notes are possible), 1: faults, 2: there is nothing to look at, or a wrong argument.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse
import os

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='a config, a folder of images, a tar, or a list with one path per line')
    parser.add_argument(
        '--split',
        nargs='+',
        action='extend',
        choices=('train', 'val', 'test'),
        help='data loaders of the config to scan (default: all)',
    )
    parser.add_argument(
        '--labels',
        choices=('auto', 'folder', 'none'),
        default='auto',
        help='whether the first-level folders of a folder or tar must be good class folders (default: if at least two '
        'hold most of the images)',
    )
    parser.add_argument(
        '--root', metavar='FOLDER', help="folder that a list's relative paths start at, as roots (default: the list's)"
    )
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='number of processes (default: one per core)'
    )
    parser.add_argument(
        '--out', metavar='FILE', help='write all findings to this file, as JSON if it ends in .json, else as text'
    )
    parser.add_argument(
        '--write-list', metavar='FILE', help='write a list of the good images of a folder, in the format of ImageFiles'
    )
    add_config_options(parser)
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.commands.verify_data import run

    return run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
