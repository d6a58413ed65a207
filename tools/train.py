#!/usr/bin/env python3
"""Train any config: pretraining, fine-tuning, linear probing, segmentation or detection."""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a file in configs/ or your own config')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--init',
        metavar='CHECKPOINT',
        help='start from the encoder in this file; every weight must be found. A pretraining also takes decoders and '
        'momentum encoder if they fit (docs/continued.md)',
    )
    parser.add_argument(
        '--source',
        choices=('online', 'momentum', 'raw', 'ema'),
        help='encoder that --init takes: online or momentum of a BootMAE file (default: online, as the authors do); '
        'raw or ema of a file with raw and averaged weights',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume a run from this checkpoint (default: the newest one of this run in the work directory)',
    )
    parser.add_argument(
        '--resume-changed', action='store_true', help='resume even if the config differs from that of the checkpoint'
    )
    parser.add_argument(
        '--move-aside',
        action='store_true',
        help='move checkpoints of an earlier run in the work directory into a subfolder, and start this run',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size instead of keeping the batch size of the recipe by '
        'gradient accumulation',
    )
    add_config_options(parser)
    parser.add_argument(
        '--rows', metavar='FILE.csv', help='append the metrics of the last validation to this file of result rows'
    )
    parser.add_argument(
        '--row',
        nargs='+',
        action='extend',
        default=[],
        metavar='COLUMN=VALUE',
        help='columns of these rows: task (required: linear, finetune, segmentation or detection), method, data, '
        'labels, label',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='check settings, images, classes, batch and start weights, print the plan, and train nothing',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.train import rehearse, train

    if args.dry_run:
        rehearse(args)
        return
    train(
        args.config,
        args.work_dir,
        args.cfg_options,
        args.init,
        args.source,
        args.resume,
        args.launcher,
        args.auto_scale_lr,
        args.resume_changed,
        args.rows,
        args.row,
        args.move_aside,
    )


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
