#!/usr/bin/env python3
"""Run a whole comparison from one file: pretrainings, their evaluations with all seeds, result rows and a report.

    tools/suite.py suites/paper_vitb.yaml --dry-run     # cells, commands' configs, GPU-hours
    tools/suite.py suites/paper_vitb.yaml               # run what is not done; start it again after any interruption
    tools/suite.py suites/paper_vitb.yaml --slurm PARTITION > jobs.sh

All keys of suite files are in docs/suite.md.
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suite', type=Path, help='a file under suites/, or of your own')
    parser.add_argument('--dry-run', action='store_true', help='print cells, their state and GPU-hours; run nothing')
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='CELL',
        help='only these cells and the pretrainings they need; names as in --dry-run, * as in a shell, '
        'or the name of a task',
    )
    parser.add_argument('--size', help="one of the file's sizes")
    parser.add_argument('--out', type=Path, help='folder of runs and report (default: work_dirs/suites/<file>)')
    parser.add_argument('--gpus', type=int, help='GPUs of this machine to use (default: all; 0: the CPU)')
    parser.add_argument('--lanes', type=int, help='cells at a time on a CPU (default: one a core, at most 6)')
    parser.add_argument(
        '--redo',
        nargs='+',
        default=[],
        metavar='CELL',
        help='drop what these cells have, and what was judged from them, and run them again',
    )
    parser.add_argument('--report-only', action='store_true', help='write results.csv and the report of what is done')
    parser.add_argument(
        '--no-pictures',
        action='store_true',
        help='leave test images out of the report: to publish it where they may not be',
    )
    parser.add_argument('--tflops', type=float, help='sustained speed of a GPU that --dry-run reckons with')
    slurm = parser.add_mutually_exclusive_group()
    slurm.add_argument('--slurm', metavar='PARTITION', help='print a script that submits one Slurm job a cell')
    slurm.add_argument('--in-slurm', metavar='PARTITION', help=argparse.SUPPRESS)
    parser.add_argument('--submit', action='store_true', help='with --slurm: submit the jobs at once')
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.suite.command import run_suite

    return run_suite(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
