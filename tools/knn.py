#!/usr/bin/env python3
"""Evaluate frozen features of an encoder by k-NN and, on request, logistic regression.

    tools/knn.py configs/cls/bootmae_vitb_finetune.py --init work_dirs/bootmae_vitb/epoch_801.pth

The training images of the config are the reference set and its test images the queries, both without augmentation. The
features are the mean of the patch tokens, normalized by a LayerNorm, after the last block or model.backbone.depth.
--blocks 6 9 12 or --blocks all evaluates several blocks and reads every image once. A linear probe, a layer trained by
SGD or LARS, is a training: use configs/cls/*_linear.py with tools/train.py.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config in configs/cls, which sets the backbone, data and input statistics')
    encoder = parser.add_mutually_exclusive_group(required=True)
    encoder.add_argument(
        '--init',
        nargs='+',
        action='extend',
        metavar='CHECKPOINT',
        help='files with an encoder, or folders of runs; several are consecutive seeds of one method',
    )
    encoder.add_argument(
        '--untrained', type=int, metavar='SEEDS', help='evaluate this many encoders with random weights instead'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the first encoder (default: 0)')
    parser.add_argument(
        '--source',
        choices=('online', 'momentum', 'raw', 'ema'),
        default='online',
        help='encoder: online or momentum of a BootMAE file, raw or ema of a file with raw and averaged weights',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        action='extend',
        choices=('knn', 'linear'),
        help='knn (default) and linear: logistic regression',
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        action='extend',
        metavar='N',
        help='labeled images per class: numbers, or all; each seed draws its own subset (default: labels_per_class of '
        'the config, or all)',
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        action='extend',
        metavar='N',
        help='blocks to evaluate, counted from 1, or all (default: the block of the config)',
    )
    parser.add_argument('--k', type=int, help='neighbors (default: 20, or all labeled images if there are fewer)')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images (default: 0)')
    parser.add_argument('--rows', metavar='FILE.csv', help='append the results to this file of result rows')
    parser.add_argument('--data-name', help='name of the data in the rows (default: from the config)')
    parser.add_argument('--method', help='method name in the rows (default: from the checkpoint)')
    parser.add_argument(
        '--label', default='measured', choices=('measured', 'demo'), help='label of the rows (default: measured)'
    )
    add_config_options(parser)
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.knn import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
