#!/usr/bin/env python3
"""Say within seconds what is wrong with this installation or machine, each fault with its remedy.

Exit code 0: no fault (there may be notes), 1: faults.
"""

import argparse
import importlib
import sys
import types
from pathlib import Path


def load() -> types.ModuleType:
    """bootmae/commands/doctor.py without the package around it, which may not import."""
    sys.modules['alone'] = package = types.ModuleType('alone')
    package.__path__ = [str(Path(__file__).resolve().parents[1] / 'bootmae' / 'commands')]
    return importlib.import_module('alone.doctor')


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', help='where runs will go (default: work_dirs)')
    return load().main(parser.parse_args().work_dir)


if __name__ == '__main__':
    sys.exit(command())
