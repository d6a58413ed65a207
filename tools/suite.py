#!/usr/bin/env python3
"""Run a whole comparison from one file: pretrainings, their evaluations with all seeds, result rows and a report.

    tools/suite.py suites/paper_vitb.yaml --dry-run     # cells, configs, GPU-hours
    tools/suite.py suites/paper_vitb.yaml               # run unfinished cells; run it again after any interruption
    tools/suite.py suites/paper_vitb.yaml --slurm PARTITION > jobs.sh

docs/suite.md documents the keys of suite files.
"""

import argparse
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suite', type=Path, help='a suite file, such as those in suites/')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print cells, their state and estimated GPU-hours without running anything',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='CELL',
        help='run only these cells and the pretrainings that they need: names as in --dry-run, patterns with *, or '
        'names of tasks',
    )
    parser.add_argument('--size', help='one of the sizes of the file')
    parser.add_argument('--out', type=Path, help='folder of runs and report (default: work_dirs/suites/<file>)')
    parser.add_argument('--gpus', type=int, help='number of GPUs to use (default: all; 0: the CPU)')
    parser.add_argument('--lanes', type=int, help='cells at a time on a CPU (default: one per core, at most 6)')
    parser.add_argument(
        '--redo',
        nargs='+',
        default=[],
        metavar='CELL',
        help='delete these cells and the evaluations that need them, and run them again',
    )
    parser.add_argument(
        '--report-only', action='store_true', help='write results.csv and the report of the finished cells'
    )
    parser.add_argument(
        '--no-pictures', action='store_true', help='leave test images out of the report, e.g. to publish it'
    )
    parser.add_argument('--tflops', type=float, help='sustained speed of a GPU for the estimate of --dry-run')
    slurm = parser.add_mutually_exclusive_group()
    slurm.add_argument('--slurm', metavar='PARTITION', help='print a script that submits one Slurm job per cell')
    slurm.add_argument('--in-slurm', metavar='PARTITION', help=argparse.SUPPRESS)
    parser.add_argument('--submit', action='store_true', help='with --slurm: submit the jobs')
    return parser.parse_args()


def command() -> int:
    args = parse_args()
    from bootmae.suite.command import run_suite

    return run_suite(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
