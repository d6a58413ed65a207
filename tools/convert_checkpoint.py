#!/usr/bin/env python3
"""Write a checkpoint for another program, or under our names: any file that --init takes, whole or its encoder.

    tools/convert_checkpoint.py work_dirs/bootmae_vitb/epoch_801.pth --to timm vitb.safetensors

  timm         VisionTransformer. A pretrained encoder: num_classes=0, fc_norm=False, with global_pool='avg' for the
               mean of the patches; a fine-tuned classifier: global_pool='avg'; --source momentum: final_norm=False
  mmpretrain   VisionTransformer; a classifier with its head (out_type='avg_featmap', final_norm=False)
  mmseg        a segmentor, ours or the authors': all of it, for tools/test.py with its config here;
               an encoder: mmseg's VisionTransformer (patch_bias=True, norm_cfg=dict(type='LN', eps=1e-6))
  mmdet        ViT of mmdetection's projects/ViTDet, as init_cfg or load_from
  hf           ViTModel of transformers (layer_norm_eps=1e-6); name it model.safetensors
  authors      names of the BootMAE release: pretraining, fine-tuned or segmentation, as the file is
  safetensors  our names, everything

Input statistics, size, heads and a hash are written with the weights (meta.bootmae, or the header of safetensors), and
are believed when such a file is loaded here.
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC', help='the file to read')
    parser.add_argument(
        '--to',
        required=True,
        metavar='FORMAT',
        choices=('mmpretrain', 'timm', 'mmseg', 'mmdet', 'hf', 'authors', 'safetensors'),
        help='one of the above',
    )
    parser.add_argument('dst', metavar='DST', help='the file to write: .pth, or .safetensors')
    parser.add_argument(
        '--source',
        choices=('online', 'momentum'),
        default='online',
        help='which encoder of a BootMAE file (default: online, as the authors)',
    )
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    import bootmae.registry  # noqa: F401
    from bootmae.checkpoints.export import convert

    print(convert(args.src, args.to, args.dst, args.source, args.force))


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
