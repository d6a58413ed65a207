"""Implementation of ``tools/suite.py``."""

import argparse
import io
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from mmengine.logging import MMLogger

from ..checkpoints.folders import in_groups
from ..distributed.exits import REQUEUE
from ..places import from_anywhere, runs_folder, shown
from ..report.overview import overview_text
from ..report.tables import text_table
from ..text import count_of
from .cells import Cell, make_cells, matching, select, suite_folder
from .collect import cell_config, repeated_rows, row_keys, write_results
from .dry_run import TFLOPS, plan_text
from .fork_server import ForkServer
from .job_state import DONE, check_definitions, definition, is_free, read_job_state, state_of
from .machine import find_machine
from .page import write_report
from .running import SuiteRun
from .slurm import script
from .spec import load_suite
from .status import Status, interrupted

FAILED_CELLS = 1  # exit code
MODULES = (  # what cells import sooner or later
    'bootmae.commands.train',
    'bootmae.commands.test',
    'bootmae.commands.knn',
    'bootmae.evaluation.metrics_det',
    'mmseg.models',
    'sklearn.linear_model',
)


def run_suite(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code."""
    MMLogger.get_instance('suite', log_level='ERROR')  # libraries log every config and data set
    warnings.filterwarnings('ignore', message='Default ``avg_non_ignore``')  # mmseg warns each time
    path = from_anywhere(args.suite)
    suite = load_suite(path, args.size, [str(path.expanduser().absolute()) for path in args.data])
    suite = replace(suite, path=path.resolve())
    root = (args.out or suite_folder(suite)).resolve()
    os.chdir(runs_folder())  # configs and data are relative to it, wherever the call comes from
    every = make_cells(suite, root)
    cells = select(every, args.only)
    if args.dry_run:
        plan, faults = plan_text(cells, args.tflops or TFLOPS, args.gpus)
        print(plan, flush=True)
        if any(read_job_state(cell).definition for cell in cells):
            define(cells, every)  # lists cells whose results are of another definition
        if faults:
            raise ValueError(f'these cells would fail:\n{faults}')
        return 0
    if args.redo:
        redo(every, args.redo)
    if args.report_only:
        define([], every)
        finish(every, root, not args.no_pictures)
        return 0
    definitions, lengths = define(cells, every)
    if args.slurm:
        return to_slurm(args, cells, root)
    for line in interrupted(cells):
        print(line, flush=True)
    return run_here(args, cells, every, root, definitions, lengths)


def run_here(
    args: argparse.Namespace,
    cells: Sequence[Cell],
    every: Sequence[Cell],
    root: Path,
    definitions: dict[str, str],
    lengths: dict[str, dict],
) -> int:
    """Run cells on this machine, write the report, and return the exit code."""
    machine = find_machine(args.gpus, args.lanes, cells)
    status = Status(cells)
    done = sum(state_of(cell) == DONE for cell in cells)
    print(
        f'{args.suite}: {count_of(len(cells), "cell")}, {done} done before; up to {machine.total} at a '
        f'time on {count_of(machine.total // machine.lanes, "GPU") if machine.gpu else "the CPU"}; in {shown(root)}',
        flush=True,
    )
    server = None
    if done < len(cells) and not machine.gpu and not args.in_slurm and sys.platform == 'linux':  # macOS: no safe fork
        server = ForkServer(MODULES, runs_folder(), machine.environment([]))
    run = SuiteRun(cells, definitions, lengths, machine, status.tell, args.in_slurm, server)
    whole = run.run(status.tick)
    if server:
        server.close()
    if not args.in_slurm:  # on Slurm the last job writes it
        finish(every, root, not args.no_pictures)
    if run.stopping is not None or (args.in_slurm and 'stopped' in run.states.values()):
        print(
            f'stopped by {run.stopping.name if run.stopping else "a signal"}: run the same command again to resume',
            file=sys.stderr,
        )
        return REQUEUE
    bad = [
        f'  {cell.name}: {read_job_state(cell).detail or run.states[cell.name]}; see {cell.folder / "log.txt"}'
        for cell in cells
        if run.states[cell.name] != DONE
    ]
    if bad:
        print(
            '\n'.join(
                [
                    f'{len(bad)} of {count_of(len(cells), "cell is", "cells are")} not done; run the same command '
                    'again to retry them:',
                    *bad,
                ]
            ),
            file=sys.stderr,
        )
    return 0 if whole else FAILED_CELLS


def define(cells: Sequence[Cell], every: Sequence[Cell]) -> tuple[dict[str, str], dict[str, dict]]:
    """Definition and training length of each cell, by name.

    Raises:
        ValueError: Cells have results of another definition (see :func:`check_definitions`), data have no name for
            result rows, or two tasks would write the same rows.
    """
    definitions: dict[str, str] = {}
    keys = []
    lengths: dict[str, dict] = {}
    for cell in every:  # pretrainings come first
        cfg = cell_config(cell)
        needs = definitions[cell.needs.name] if cell.needs else ''
        if cell.task:
            keys.append((cell, row_keys(cell, cfg)))
        definitions[cell.name] = definition(cell, cfg, needs)
        loop = cfg.get('train_cfg') or {}
        lengths[cell.name] = {key: loop[key] for key in ('max_epochs', 'max_iters') if key in loop}
    if fault := repeated_rows(keys):
        raise ValueError(f'{every[0].suite.path}: {fault}')
    check_definitions(cells, definitions)
    return definitions, lengths


def redo(every: Sequence[Cell], patterns: Sequence[str]) -> None:
    """Delete the folders of cells and of the evaluations that need them.

    Raises:
        ValueError: One of them is running.
    """
    named = {cell.name for cell in matching(every, patterns)}
    chosen = [cell for cell in every if cell.name in named or (cell.needs and cell.needs.name in named)]
    for cell in chosen:
        if not is_free(cell):
            raise ValueError(f'{cell.name} is running: wait for it or stop it before --redo')
    for cell in chosen:
        shutil.rmtree(cell.folder, ignore_errors=True)


def finish(every: Sequence[Cell], root: Path, pictures: bool = True) -> None:
    """Write result rows and report of the finished cells and print the tables.

    Args:
        every: All cells of the suite.
        root: The suite's folder.
        pictures: Whether the report shows test images.
    """
    rows = write_results(list(every), root / 'results.csv')
    if not any(state_of(cell) == DONE for cell in every):
        print('no cell is done: no report')
        return
    if rows:
        print(text_table(rows))
        print(overview_text(rows))
        print(f'rows:   {shown(root / "results.csv")}', flush=True)
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        report = write_report(every, rows, root / 'report.html', pictures)
    print(f'report: {shown(report)}')
    if runs := [cell.run for cell in every if cell.task is None and state_of(cell) == DONE]:
        print(f'encoders: {in_groups(runs, root, f"{shown(root)}/")}; any of these folders stands for its checkpoint')
    sys.stdout.flush()


def to_slurm(args: argparse.Namespace, cells: Sequence[Cell], root: Path) -> int:
    """Print or run the script that submits the unfinished cells; returns the exit code."""
    left = [cell for cell in cells if state_of(cell) != DONE]
    if not left:
        print('# nothing is left to submit: all cells are done; --report-only writes the report')
        return 0
    suite = cells[0].suite
    data = ['--data', *suite.images] if suite.images else []
    given = [str(suite.path), *(['--size', args.size] if args.size else []), *data, '--out', str(root)]
    text = script(left, given, args.slurm, root)
    if not args.submit:
        print(text, end='')
        return 0
    return subprocess.run(['bash', '-c', text], cwd=runs_folder()).returncode
