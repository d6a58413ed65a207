#!/usr/bin/env python3
"""Convert a checkpoint for another program, or to our own names. Any file that --init accepts can be converted.

    tools/convert_checkpoint.py work_dirs/bootmae_vitb/epoch_801.pth --to timm vitb.safetensors

  timm         VisionTransformer. A pretrained encoder: num_classes=0, fc_norm=False, with global_pool='avg' for the
               mean of the patches; a fine-tuned classifier: global_pool='avg'; --source momentum: final_norm=False
  mmpretrain   VisionTransformer; a classifier with its head (out_type='avg_featmap', final_norm=False)
  mmseg        a whole segmentor, ours or the authors', for tools/test.py with its config in this repository;
               an encoder: mmseg's VisionTransformer (patch_bias=True, norm_cfg=dict(type='LN', eps=1e-6))
  mmdet        ViT of mmdetection's projects/ViTDet, as init_cfg or load_from
  hf           ViTModel of transformers. DST may be a folder, for ViTModel.from_pretrained: the weights, config.json and
               preprocessor_config.json
  authors      names of the BootMAE release: pretraining, fine-tuned or segmentation, like the file itself
  safetensors  all weights under our names

The input statistics, image size, number of heads and a hash are stored with the weights (in meta.bootmae, or in the
header of a safetensors file) and are used when the file is loaded by this package.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', help='file to read, timm:NAME, or the folder of a run')
    parser.add_argument(
        '--to',
        required=True,
        metavar='FORMAT',
        choices=('mmpretrain', 'timm', 'mmseg', 'mmdet', 'hf', 'authors', 'safetensors'),
        help='one of the formats above',
    )
    parser.add_argument('dst', metavar='DST', help='file to write: .pth or .safetensors; a folder for hf')
    parser.add_argument(
        '--source',
        choices=('online', 'momentum', 'raw', 'ema'),
        default='online',
        help='encoder to take: online or momentum of a BootMAE file (default: online, as the authors do); raw or ema '
        'of a file with raw and averaged weights',
    )
    parser.add_argument('--heads', type=int, help='number of attention heads, if the file does not record it')
    parser.add_argument('--force', action='store_true', help='overwrite DST if it exists')
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.convert import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
