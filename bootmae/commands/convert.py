"""Convert a checkpoint for another program."""

import argparse

from .. import registry  # noqa: F401
from ..checkpoints.export import convert


def run(args: argparse.Namespace) -> None:
    """Write the converted file and print what it holds."""
    print(convert(args.src, args.to, args.dst, args.source, args.force))
