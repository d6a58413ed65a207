"""Implementation of ``tools/suite.py``."""

import argparse
import io
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
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
from .job_state import DONE, check_definitions, definition, fault_of_definitions, is_free, read_job_state, state_of
from .machine import check_counts, find_machine
from .page import write_report
from .running import Machine, SuiteRun
from .slurm import script
from .spec import load_suite
from .status import Status, TolerantOutput, interrupted

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
    redone = cells_to_redo(args.redo, cells, every)
    if args.dry_run:
        return dry_run(args, cells, every, redone)
    definitions, lengths = define([] if args.report_only else cells, every, redone)
    if args.report_only:
        warn_of_changes(every, definitions)
        finish(every, root, not args.no_pictures)
        return 0
    if args.slurm:
        return to_slurm(args, cells, root, redone)
    machine = find_machine(args.gpus, args.lanes, cells)
    delete_results(redone)  # after everything that may refuse to run the cells
    for line in interrupted(cells):
        print(line, flush=True)
    with redirect_stdout(TolerantOutput(sys.stdout)), redirect_stderr(TolerantOutput(sys.stderr)):
        return run_here(args, machine, cells, every, root, definitions, lengths)


def dry_run(args: argparse.Namespace, cells: Sequence[Cell], every: Sequence[Cell], redone: Sequence[Cell]) -> int:
    """Print the plan of the cells, and raise a ValueError if their run would fail; returns the exit code."""
    check_counts(args.gpus, args.lanes)
    again = {cell.name for cell in redone}
    plan, faults = plan_text(cells, args.tflops or TFLOPS, args.gpus, again)
    print(plan, flush=True)
    if again:
        print(f'--redo would delete the results of {", ".join(cell.name for cell in redone)}', flush=True)
    if any(read_job_state(cell).definition for cell in cells if cell.name not in again):
        define(cells, every, redone)  # lists cells whose results are of another definition
    if faults:
        raise ValueError(f'these cells would fail:\n{faults}')
    return 0


def run_here(
    args: argparse.Namespace,
    machine: Machine,
    cells: Sequence[Cell],
    every: Sequence[Cell],
    root: Path,
    definitions: dict[str, str],
    lengths: dict[str, dict],
) -> int:
    """Run cells on this machine, write the report, and return the exit code."""
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
        warn_of_changes(every, definitions)  # of cells that --only left out
        finish(every, root, not args.no_pictures)
    command = 'the same command without --redo' if args.redo else 'the same command'  # it would delete what is there
    if run.stopping is not None or (args.in_slurm and 'stopped' in run.states.values()):
        print(
            f'stopped by {run.stopping.name if run.stopping else "a signal"}: run {command} again to resume',
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
                    f'{len(bad)} of {count_of(len(cells), "cell is", "cells are")} not done; run {command} again to '
                    'retry them:',
                    *bad,
                ]
            ),
            file=sys.stderr,
        )
    return 0 if whole else FAILED_CELLS


def define(
    cells: Sequence[Cell], every: Sequence[Cell], redone: Sequence[Cell] = ()
) -> tuple[dict[str, str], dict[str, dict]]:
    """Definition and training length of each cell, by name.

    Args:
        cells: Cells to run.
        every: All cells of the suite.
        redone: Cells whose results will be deleted before.

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
    check_definitions(cells, definitions, [cell.name for cell in redone])
    return definitions, lengths


def warn_of_changes(every: Sequence[Cell], definitions: dict[str, str]) -> None:
    """Name cells whose results the report has although they are of another definition."""
    if fault := fault_of_definitions(every, definitions):
        print(f'warning: the report includes old results: {fault}', file=sys.stderr, flush=True)


def cells_to_redo(patterns: Sequence[str], cells: Sequence[Cell], every: Sequence[Cell]) -> list[Cell]:
    """Cells of ``--redo`` and the evaluations that need them.

    Args:
        patterns: Names or patterns of cells.
        cells: Cells to run.
        every: All cells of the suite.

    Raises:
        ValueError: A pattern matches no cell, or one of the cells is running or would not be run again.
    """
    named = {cell.name for cell in matching(every, patterns)}
    chosen = [cell for cell in every if cell.name in named or (cell.needs and cell.needs.name in named)]
    selected = {cell.name for cell in cells}
    if outside := [cell.name for cell in chosen if cell.name not in selected]:
        raise ValueError(
            f'--redo would delete the results of {", ".join(outside)}, and --only leaves them out of this run: add '
            'them to --only, or leave --only out'
        )
    check_free(chosen)
    return chosen


def check_free(cells: Sequence[Cell]) -> None:
    """Raise a ValueError if one of the cells is running."""
    for cell in cells:
        if not is_free(cell):
            raise ValueError(f'{cell.name} is running: wait for it or stop it before --redo')


def delete_results(cells: Sequence[Cell]) -> None:
    """Delete the folders of cells.

    Raises:
        ValueError: One of them has been started meanwhile.
        OSError: A folder cannot be deleted. Results that stay would count as new ones.
    """
    check_free(cells)
    for cell in cells:
        try:
            if cell.folder.exists():
                shutil.rmtree(cell.folder)
        except OSError as error:
            raise OSError(
                f'--redo cannot delete {cell.folder} ({error}): delete it, and run the command again'
            ) from None


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


def to_slurm(args: argparse.Namespace, cells: Sequence[Cell], root: Path, redone: Sequence[Cell] = ()) -> int:
    """Print or run the script that submits the unfinished cells; returns the exit code.

    Raises:
        ValueError: Jobs cannot be submitted like this. No result has been deleted then.
    """
    again = {cell.name for cell in redone}
    left = [cell for cell in cells if cell.name in again or state_of(cell) != DONE]
    if not left:
        print('# nothing is left to submit: all cells are done; --report-only writes the report')
        return 0
    suite = cells[0].suite
    data = ['--data', *suite.images] if suite.images else []
    given = [str(suite.path), *(['--size', args.size] if args.size else []), *data, '--out', str(root)]
    text = script(left, given, args.slurm, root, pictures=not args.no_pictures)
    if not args.submit:
        print(text, end='')
        return 0
    if not shutil.which('sbatch'):
        raise ValueError('--submit: there is no sbatch on this machine: use a login node, or leave --submit out')
    delete_results(redone)
    return subprocess.run(['bash', '-c', text], cwd=runs_folder()).returncode
