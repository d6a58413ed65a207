#!/usr/bin/env python3
"""Judge frozen features: k-NN, and on request a linear probe, of an encoder on the data of a downstream config.

    tools/knn.py configs/cls/bootmae_vitb_finetune.py --init work_dirs/bootmae_vitb/epoch_801.pth

Reference images are the config's training images, queries its test images, both without augmentation. The features are
the mean of the patch tokens, LayerNorm-ed, after the last block, or that of the config (model.backbone.depth); after
several with --blocks 6 9 12 or --blocks all, which reads every image once.
"""

import argparse

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of configs/cls: backbone, data, input statistics')
    encoder = parser.add_mutually_exclusive_group(required=True)
    encoder.add_argument(
        '--init',
        nargs='+',
        metavar='CHECKPOINT',
        help='files with an encoder; several are consecutive seeds of one method',
    )
    encoder.add_argument('--untrained', type=int, metavar='SEEDS', help='so many encoders with random weights instead')
    parser.add_argument('--seed', type=int, default=0, help='seed of the first encoder (default: 0)')
    parser.add_argument('--source', choices=('online', 'momentum'), default='online')
    parser.add_argument('--tasks', nargs='+', choices=('knn', 'linear'), default=['knn'])
    parser.add_argument(
        '--labels',
        nargs='+',
        default=['all'],
        metavar='N',
        help='labeled images per class: numbers, or all (default); drawn anew for each seed',
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        metavar='N',
        help='blocks after which the features are judged, from 1, or all (default: as the config says)',
    )
    parser.add_argument('--k', type=int, default=20, help='neighbors (default: 20)')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images')
    parser.add_argument('--rows', metavar='FILE.csv', help='add the numbers to this file of result rows')
    parser.add_argument('--data', help='name of the data in the rows (default: the dataset class)')
    parser.add_argument('--method', help='name of the method in the rows (default: from the checkpoint)')
    parser.add_argument('--label', default='reproduced', choices=('reproduced', 'demo'), help='label of the rows')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='override config values'
    )
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.knn import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
