#!/usr/bin/env python3
"""Run a whole comparison from one file: pretraining and evaluation of all methods and seeds, result rows, report.

    tools/suite.py suites/paper_vitb.yaml --dry-run     # list the cells, their configs and GPU-hours
    tools/suite.py suites/paper_vitb.yaml               # run all unfinished cells; repeat after any interruption
    tools/suite.py suites/paper_vitb.yaml --slurm PARTITION > jobs.sh

docs/suite.md describes all keys of a suite file.
"""

import startup  # noqa: F401  isort: skip  before any package
import argparse
import math
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suite', type=Path, help='a file in suites/ or your own file')
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        '--dry-run', action='store_true', help='print the cells with their state and GPU-hours; run nothing'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        action='extend',
        default=[],
        metavar='CELL',
        help='run only these cells and the pretraining they need: names as in --dry-run, patterns with *, '
        'or the name of a task',
    )
    parser.add_argument('--size', help='one of the sizes in the file')
    parser.add_argument(
        '--data',
        nargs='+',
        action='extend',
        type=Path,
        default=[],
        metavar='PATH',
        help='images of the pretrainings: folders of any depth or .tar archives, instead of those of the file. Tasks '
        'read the images that the file gives them',
    )
    parser.add_argument('--out', type=Path, help='folder for runs and report (default: work_dirs/suites/<file>)')
    parser.add_argument('--gpus', type=int, help='number of local GPUs to use (default: all; 0: CPU)')
    parser.add_argument(
        '--lanes',
        type=int,
        help='number of parallel cells on a CPU (default: one per core, at most 6) or on each GPU (default: 1)',
    )
    parser.add_argument(
        '--redo',
        nargs='+',
        action='extend',
        default=[],
        metavar='CELL',
        help='delete the results of these cells and of the cells that depend on them, and run them again',
    )
    modes.add_argument(
        '--report-only', action='store_true', help='write results.csv and the report of all finished cells'
    )
    parser.add_argument(
        '--no-pictures',
        action='store_true',
        help='leave test images out of the report, for publication under restrictive licenses',
    )
    parser.add_argument('--tflops', type=float, help='sustained TFLOP/s of a GPU, for the estimates of --dry-run')
    modes.add_argument('--slurm', metavar='PARTITION', help='print a script that submits one Slurm job per cell')
    modes.add_argument('--in-slurm', metavar='PARTITION', help=argparse.SUPPRESS)
    parser.add_argument('--submit', action='store_true', help='with --slurm: submit the jobs immediately')
    args = parser.parse_args()
    if fault := fault_of(args):
        parser.error(fault)
    return args


def fault_of(args: argparse.Namespace) -> str:
    """What is wrong with the combination of options; empty if nothing was found."""
    if args.submit and not args.slurm:
        return '--submit needs --slurm PARTITION'
    if args.slurm:
        for name, value in (('--gpus', args.gpus), ('--lanes', args.lanes)):
            if value is not None:
                return (
                    f'{name} has no effect with --slurm, since each job gets the GPUs that the suite file gives to its '
                    f'cell: change gpus in the file, or leave {name} out'
                )
        if args.redo and not args.submit:
            return '--redo with --slurm needs --submit, since it deletes results that only submitted jobs replace'
    if args.report_only:
        for name, values in (('--redo', args.redo), ('--only', args.only)):
            if values:
                return (
                    f'{name} chooses cells to run, but --report-only runs none and reports all that are done: leave '
                    f'{name} or --report-only out'
                )
    if args.tflops is not None and not args.dry_run:
        return '--tflops is for the estimates of --dry-run: add --dry-run, or leave --tflops out'
    if args.tflops is not None and not 0 < args.tflops < math.inf:
        return f'--tflops {args.tflops:g}: give a number above 0'
    return ''


def command() -> int:
    args = parse_args()
    from bootmae.suite.command import run_suite

    return run_suite(args)


if __name__ == '__main__':
    from bootmae.commands.cli import main

    main(command)
