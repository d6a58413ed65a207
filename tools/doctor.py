#!/usr/bin/env python3
"""Diagnose this installation and machine within seconds; every fault comes with a remedy.

Exit code 0: no faults (notes are possible), 1: faults.
"""

import argparse
import importlib
import sys
import types
from pathlib import Path


def load() -> types.ModuleType:
    """Load bootmae/commands/doctor.py without the package, which may fail to import."""
    sys.modules['alone'] = package = types.ModuleType('alone')
    root = Path(__file__).resolve().parents[1]  # in an installed package bootmae/.mim
    package.__path__ = [str((root.parent if root.name == '.mim' else root / 'bootmae') / 'commands')]
    return importlib.import_module('alone.doctor')


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', help='folder for future runs (default: work_dirs)')
    return load().main(parser.parse_args().work_dir)


if __name__ == '__main__':
    sys.exit(command())
