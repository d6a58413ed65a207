#!/usr/bin/env python3
"""Visualize a checkpoint: reconstructions, attention of the class token, principal components of the features.

    tools/visualize.py work_dirs/demo/pretrain-digits/bootmae-0/run/epoch_24.pth
    tools/visualize.py timm:vit_base_patch16_224.mae --what attention pca --images /my/photos

  reconstruction  the decoder's prediction of masked patches, with and without each patch's own mean and variance;
                  needs a decoder: pretraining runs, MAE of mmpretrain and facebookresearch, the authors' BootMAE
  attention       from the class token to the patches, per head and averaged; any file that --init accepts
  pca             the first three principal components of the patch features as colors; any file that --init accepts

Each kind is one PNG file with a caption.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a file, the folder of a run, or timm:NAME')
    parser.add_argument(
        '--what',
        nargs='+',
        choices=('reconstruction', 'attention', 'pca'),
        help='kinds of pictures (default: all three)',
    )
    parser.add_argument('--config', help='config of the checkpoint (default: the config recorded by the run)')
    parser.add_argument(
        '--images',
        nargs='+',
        default=['embedded'],
        metavar='PLACE',
        help='folders or image files; embedded (default): photographs from installed packages; digits',
    )
    parser.add_argument(
        '--channels',
        nargs='+',
        type=int,
        metavar='N',
        help='channels of the images to show, counted from 0: three as red, green and blue, or one in gray (default: '
        'the first three)',
    )
    parser.add_argument('--count', type=int, default=6, help='maximum number of images (default: 6)')
    parser.add_argument(
        '--size',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='side, or height and width, of the images (default: as in training)',
    )
    parser.add_argument(
        '--out', metavar='PATH', help='output folder or .png file (default: a folder in work_dirs/visualize)'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed of the masks (default: 0)')
    parser.add_argument(
        '--block',
        type=int,
        help='attention and pca: block to show, from 0, or -1, -2, ... from the end (default: the last)',
    )
    parser.add_argument(
        '--source',
        choices=('online', 'momentum', 'raw', 'ema'),
        default='online',
        help='attention and pca: online or momentum encoder of a BootMAE file, raw or ema (averaged) weights of others',
    )
    parser.add_argument(
        '--heads', type=int, help='number of attention heads, if the file does not record it and its width is unusual'
    )
    parser.add_argument(
        '--statistics',
        choices=('imagenet', 'half'),
        help='mean and standard deviation of the input, if the file does not record them (default: imagenet)',
    )
    parser.add_argument(
        '--target',
        choices=('normalized', 'pixels'),
        help='training target of an MAE from another project, if its file does not record it',
    )
    add_config_options(parser, images=False)
    args = parser.parse_args()
    if args.size and len(args.size) > 2:
        parser.error('--size takes one or two numbers')
    return args


def command() -> None:
    args = parse_args()
    from bootmae.commands.visualize import DrawOptions, visualize

    size = None if args.size is None else (args.size[0], args.size[-1])
    options = DrawOptions(
        args.checkpoint,
        args.config,
        args.images,
        size,
        args.count,
        args.seed,
        args.block,
        args.heads,
        args.source,
        args.statistics,
        args.target,
        args.channels,
        args.cfg_options,
    )
    for path in visualize(options, args.what, args.out):
        print(path)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
