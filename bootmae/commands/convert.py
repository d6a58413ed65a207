"""Convert a checkpoint for another program."""

import argparse

from .. import registry  # noqa: F401
from ..checkpoints.export import convert
from ..checkpoints.folders import checkpoint_file


def run(args: argparse.Namespace) -> None:
    """Write the converted file and print what it holds."""
    print(convert(checkpoint_file(args.src), args.to, args.dst, args.source, args.force, args.heads))
