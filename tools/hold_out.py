#!/usr/bin/env python3
"""Hold images out of a training set, to choose hyper-parameters without a look at the test set.

    tools/hold_out.py data/imagenet/train data/imagenet_held_out              # a tenth of each class to val/
    tools/hold_out.py photos held_out --share 0.2 --seed 1

SOURCE has one folder a class. OUT/train/<class>/ and OUT/val/<class>/ get relative links to its images, each image in
exactly one of them, so OUT is used like any data set with train/ and val/, as long as SOURCE stays where it is. SOURCE,
share and seed determine the division; called again, it changes nothing and says so. An OUT that holds anything else is
refused.
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='folder with one folder a class')
    parser.add_argument('out', metavar='OUT', help='new or empty folder for the links, not inside SOURCE')
    parser.add_argument(
        '--share',
        type=float,
        default=0.1,
        help="of each class's images that go to val, at least one and never all (default: 0.1)",
    )
    parser.add_argument('--seed', type=int, default=0, help='draws them (default: 0)')
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.hold_out import divide

    print(divide(args.source, args.out, args.share, args.seed))


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
