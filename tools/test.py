#!/usr/bin/env python3
"""Evaluate a trained model on the test data of its config."""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='checkpoint of the model, or the folder of its run; every weight must match')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='use the test-time augmentation of the config: several scales, flipped images',
    )
    parser.add_argument('--out', metavar='FILE.json', help='also write the metrics to this file')
    parser.add_argument('--rows', metavar='FILE.csv', help='append the metrics to this file of result rows')
    parser.add_argument(
        '--row',
        nargs='+',
        action='extend',
        default=[],
        metavar='COLUMN=VALUE',
        help='columns of these rows: task (required: linear, finetune, segmentation or detection), method, data, '
        'labels, label',
    )
    parser.add_argument('--init', metavar='CHECKPOINT', help='encoder that the training started from, for --rows')
    parser.add_argument(
        '--source',
        choices=('online', 'raw', 'ema'),
        default='online',
        help='weights to take from a file with raw and averaged (ema) weights (default: its state_dict)',
    )
    parser.add_argument('--work-dir', help='folder for the log (default: work_dirs/<config name>)')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.test import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
