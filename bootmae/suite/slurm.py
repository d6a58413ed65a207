"""A suite as Slurm jobs: one per cell, where evaluations wait for their pretraining, and one that writes the report."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..places import runs_folder
from .cells import Cell, tool

REPORT = 'report'
GPUS_PER_NODE = 8  # as in tools/slurm_train.sh


def script(
    cells: Sequence[Cell], suite_args: Sequence[str], partition: str, root: Path, cpus: int = 10, pictures: bool = True
) -> str:
    """A shell script that submits the jobs.

    A job runs ``tools/suite.py --only CELL``, and its training gets the job's nodes from ``tools/slurm_train.sh``: at
    the time limit it saves, is requeued, and resumes.

    Args:
        cells: Unfinished cells.
        suite_args: Arguments that name the suite, its size and folder.
        partition: Partition of the cluster.
        root: The suite's folder, for logs.
        cpus: CPU cores per GPU.
        pictures: Whether the report shows test images.

    Raises:
        ValueError: A number of GPUs that does not fill its nodes.
    """
    names = {cell.name: f'job{number}' for number, cell in enumerate(cells)}
    lines = ['#!/usr/bin/env bash', 'set -euo pipefail', f'mkdir -p {shlex.quote(str(root / "slurm"))}']
    for cell in cells:
        needs = names.get(cell.needs.name) if cell.needs else None
        lines.append(f'{names[cell.name]}=$({_sbatch(cell, suite_args, partition, root, cpus, needs)})')
    after = ':'.join(f'${name}' for name in names.values())
    command = tool('suite.py', *suite_args, '--report-only', *([] if pictures else ['--no-pictures']))
    lines.append(
        f'sbatch --parsable --partition={shlex.quote(partition)} --job-name={REPORT} --ntasks=1 '
        f'--dependency="afterany:{after}" --kill-on-invalid-dep=yes '
        f'--output={shlex.quote(str(root / "slurm" / "report-%j.log"))} '
        f'--chdir={shlex.quote(str(runs_folder()))} --wrap={shlex.quote(shlex.join(command))}'
    )
    return '\n'.join(lines) + '\n'


def _sbatch(cell: Cell, suite_args: Sequence[str], partition: str, root: Path, cpus: int, needs: str | None) -> str:
    gpus = cell.training.gpus
    per_node = min(gpus, GPUS_PER_NODE)
    if gpus % per_node:
        raise ValueError(
            f'{cell.suite.path}, gpus of {cell.training.name}: {gpus} GPUs do not fill nodes of {GPUS_PER_NODE}: give '
            f'at most {GPUS_PER_NODE} or a multiple of it'
        )
    command = tool('suite.py', *suite_args, '--only', cell.name, '--in-slurm', partition)
    name = cell.name.replace('/', '.')
    words = [
        'sbatch',
        '--parsable',
        f'--partition={partition}',
        f'--job-name={name}',
        f'--nodes={gpus // per_node}',
        '--ntasks-per-node=1',
        f'--gres=gpu:{per_node}',
        f'--cpus-per-task={cpus * per_node}',
        '--requeue',
        '--open-mode=append',
        '--signal=USR1@120',
        f'--chdir={runs_folder()}',
        f'--output={root / "slurm" / f"{name}-%j.log"}',
    ]
    line = shlex.join(words)
    if needs:
        line += f' --dependency="afterok:${needs}" --kill-on-invalid-dep=yes'  # else it would wait forever
    return f'{line} --wrap={shlex.quote("exec " + shlex.join(command))}'
