#!/usr/bin/env python3
"""Compare this implementation with numbers computed by the releases of BootMAE, MAE and ViTDet (.npz files)."""

import startup  # noqa: F401  isort: skip  before any package
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('files', nargs='+', metavar='FILE.npz', help='e.g. tests/golden/*.npz')
    parser.add_argument(
        '--compile',
        nargs='?',
        const=True,
        default=False,
        choices=('whole', 'blocks'),
        help='use torch.compile for the whole training graph (default) or for each block',
    )
    parser.add_argument('--device', default='cpu', help='device to compute on (default: cpu)')
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.commands.parity import run

    return run(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
