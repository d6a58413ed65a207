#!/usr/bin/env python3
"""Draw what a checkpoint has learnt: reconstructions, attention of the class token, components of its features.

    tools/visualize.py work_dirs/bootmae_demo/epoch_14.pth
    tools/visualize.py timm:vit_base_patch16_224.mae --what attention pca --images /my/photos

  reconstruction  masked patches as the decoder predicts them, with and without each patch's own mean and variance;
                  for files with a decoder: pretraining runs, MAE of mmpretrain and facebookresearch, authors' BootMAE
  attention       from the class token to the patches, mean and each head, over the image; any file that --init takes
  pca             the first three principal components of the patch features as colors; any file that --init takes

One PNG each, with its caption drawn in.
"""

import argparse

from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a file, or timm:NAME')
    parser.add_argument(
        '--what', nargs='+', choices=('reconstruction', 'attention', 'pca'), help='which pictures (default: all three)'
    )
    parser.add_argument('--config', help='the config that made the file (default: the one that a run here records)')
    parser.add_argument(
        '--images',
        nargs='+',
        default=['embedded'],
        metavar='PLACE',
        help='folders or image files; embedded (default): photographs that packages carry; digits',
    )
    parser.add_argument('--count', type=int, default=6, help='images at most (default: 6)')
    parser.add_argument(
        '--size',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='side, or height and width, of the images (default: as in the training)',
    )
    parser.add_argument(
        '--out', metavar='PATH', help='a folder, or the name of a .png (default: below work_dirs/visualize)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: 0)')
    parser.add_argument(
        '--block',
        type=int,
        help='attention and pca: which block, from 0, or from the end with -1, -2, ... (default: the last)',
    )
    parser.add_argument(
        '--source',
        choices=('online', 'momentum'),
        default='online',
        help='attention and pca: which encoder of a BootMAE file',
    )
    parser.add_argument('--heads', type=int, help='attention heads, for a file of unusual width that does not tell')
    parser.add_argument(
        '--statistics',
        choices=('imagenet', 'half'),
        help='mean and deviation of the input, for a file that does not tell (default: imagenet)',
    )
    parser.add_argument(
        '--target',
        choices=('normalized', 'pixels'),
        help='what an MAE of another project was trained to predict, if its file does not tell',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config, as in the training',
    )
    args = parser.parse_args()
    if args.size and len(args.size) > 2:
        parser.error('--size takes one or two numbers')
    return args


def command() -> None:
    args = parse_args()
    from bootmae.commands.visualize import Choice, visualize

    size = None if args.size is None else (args.size[0], args.size[-1])
    choice = Choice(
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
        args.cfg_options,
    )
    for path in visualize(choice, args.what, args.out):
        print(path)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
