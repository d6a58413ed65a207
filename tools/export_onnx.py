#!/usr/bin/env python3
"""Export an encoder, a classifier or an UperNet segmentor to ONNX, and compare the file with torch.

    tools/export_onnx.py configs/cls/bootmae_vitb_finetune.py work_dirs/bootmae_vitb_finetune/epoch_100.pth vitb.onnx

  logits   of a classifier (B, classes), or of a segmentor (B, classes, height, width) at the size of the images
  pooled   the features (B, width) of an encoder that tools/knn.py evaluates
  dense    the map (B, width, rows, columns) of an encoder's last block, with its final norm if the file has one

The number of images is dynamic. The file is written only if ONNX Runtime gives the results of torch on photographs.
Needs pip install onnx onnxruntime onnxscript; docs/onnx.md explains the inputs.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse

from bootmae.config.options import add_config_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the model, in configs/cls or configs/seg')
    parser.add_argument('checkpoint', help='file of a trained model; for features, any file with an encoder that fits')
    parser.add_argument('out', metavar='OUT.onnx', help='file to write')
    parser.add_argument(
        '--output',
        choices=('logits', 'pooled', 'dense'),
        help='one of the outputs above (default: logits if the checkpoint has the head of the model, otherwise pooled)',
    )
    parser.add_argument(
        '--uint8',
        choices=('nhwc', 'nchw'),
        help='take uint8 RGB images in this layout and normalize them in the graph (default: normalized float32, nchw)',
    )
    parser.add_argument(
        '--size',
        nargs='+',
        metavar='N',
        help='HEIGHT WIDTH in pixels, or dynamic (dense features and segmentors; default: the size of the config)',
    )
    parser.add_argument(
        '--source',
        choices=('online', 'momentum', 'raw', 'ema'),
        default='online',
        help='encoder: online or momentum of a BootMAE file, raw or ema of a file with raw and averaged weights',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help='largest difference from torch in any output value (default: 1e-4)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite OUT.onnx if it exists')
    add_config_options(parser, images=False)
    return parser.parse_args()


def command() -> None:
    args = parse_args()
    from bootmae.commands.export_onnx import run

    run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
