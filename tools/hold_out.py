#!/usr/bin/env python3
"""Hold out part of a training set, so that hyper-parameters can be chosen without the test set.

    tools/hold_out.py data/imagenet/train data/imagenet_held_out              # a tenth of each class goes to val/
    tools/hold_out.py photos held_out --share 0.2 --seed 1

SOURCE has one folder per class. OUT/train/<class>/ and OUT/val/<class>/ get relative links to its images, each image in
exactly one of the two. Use OUT like any data set with train/ and val/, and keep SOURCE where it is. SOURCE, share and
seed determine the split. A second call changes nothing and says so. An OUT with any other content is an error.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='folder with one folder per class')
    parser.add_argument('out', metavar='OUT', help='new or empty folder for the links, not inside SOURCE')
    parser.add_argument(
        '--share',
        type=float,
        default=0.1,
        help='fraction of the images of each class that goes to val, at least one and never all (default: 0.1)',
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed of the split (default: 0)')
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.hold_out import split_folder

    print(split_folder(args.source, args.out, args.share, args.seed))


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
