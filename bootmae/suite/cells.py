"""Cells of a suite: one pretraining or one evaluation, of one method with one seed."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..checkpoints.folders import checkpoint_file, run_files
from ..config.options import IMAGES, format_value
from ..places import REPOSITORY, as_typed, runs_folder, shown
from .spec import FROZEN_KINDS, Method, Suite, Task, Training, config_of

TASKS_OF_KIND = {'knn': ('knn',), 'frozen': ('knn', 'linear')}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        suite: The suite that it belongs to.
        training: The pretraining or task.
        method: Method of the encoder.
        seed: Seed of pretraining and evaluation.
        root: The suite's folder.
        needs: The pretraining whose encoder it evaluates, if any.
    """

    suite: Suite
    training: Training
    method: Method
    seed: int
    root: Path
    needs: 'Cell | None' = None

    @property
    def name(self) -> str:
        """Name of the cell, unique in the suite; also its folder below the suite's."""
        return f'{self.training.name}/{self.method.name}-{self.seed}'

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def run(self) -> Path:
        """Work directory of the cell's training."""
        return self.folder / 'run'

    @property
    def rows_file(self) -> Path:
        """Result rows of a finished evaluation."""
        return self.folder / 'rows.csv'

    @property
    def task(self) -> Task | None:
        """The task of an evaluation; None for a pretraining."""
        return self.training if isinstance(self.training, Task) else None

    @property
    def trains(self) -> bool:
        """Whether its command is a training, which can resume."""
        return self.task is None or self.task.kind not in FROZEN_KINDS

    @property
    def config(self) -> str:
        return config_of(self.training, self.method)

    @property
    def options(self) -> dict[str, Any]:
        """Config values of the cell by dotted key: the seed, then the suite's options, then (for a pretraining) those
        of the method; later ones win."""
        pairs = _flat(self.training.options) + ([] if self.task else _flat(self.method.options))
        values = {'randomness.seed': self.seed} if self.trains else {}
        return values | {key: self.seed if value == '{seed}' else value for key, value in pairs}

    @property
    def weights(self) -> str | None:
        """File or name of the encoder that it evaluates or trains further; None for a random one.

        Raises:
            FileNotFoundError: The pretraining that it needs has not finished.
            ValueError: The folder that the suite file gives has several runs.
        """
        if self.needs is not None:
            return str(last_checkpoint(self.needs.run))
        given = self.given_weights
        return given and checkpoint_file(given, lambda line: None)

    @property
    def given_weights(self) -> str | None:
        """File, folder or name of the encoder, as the suite file gives it."""
        given = self.method.weights if self.task else self.method.init
        return given and given.replace('{seed}', str(self.seed))

    @property
    def source(self) -> str:
        """Encoder of that file."""
        return self.method.source if self.task else self.method.init_source

    def commands(self, gpus: int, slurm: str | None = None) -> list[list[str]]:
        """Commands of the cell, in order. A training resumes from its newest checkpoint if it has one.

        Args:
            gpus: GPUs of this cell; 0 for the CPU.
            slurm: Partition, if a training gets its nodes from ``srun``.
        """
        init = [] if self.weights is None else ['--init', self.weights]
        source = ['--source', self.source] if init and self.source != 'online' else []
        if not self.trains:
            return [self._frozen_command(init + source or ['--untrained', '1'])]
        resume = ['--resume'] if self.run.is_dir() and run_files(self.run) else []
        tested = self.task is not None and self.task.test
        rows = self._row_options() if self.task and not tested else []
        settings = ['--work-dir', str(self.run), *init, *source, *resume, *rows, *as_options(self.options)]
        commands = [launch(self.config, settings, gpus, slurm, self.name)]
        for name, flags in (('test', []), ('tta', ['--tta'])):
            if self.task is not None and getattr(self.task, name):
                settings = [*flags, '--work-dir', str(self.folder / name), *init, *self._row_options()]
                commands.append([*tool('test.py', self.config, LAST), *settings, *as_options(self.options)])
        return commands

    def _frozen_command(self, encoder: list[str]) -> list[str]:
        task, columns = self.task, ['--method', self.method.name, '--label', self.suite.label]
        return tool(
            'knn.py',
            self.config,
            *encoder,
            *['--seed', str(self.seed), *columns, *(['--data-name', task.data] if task.data else [])],
            *['--tasks', *TASKS_OF_KIND[task.kind], *(['--labels', *task.labels] if task.labels else [])],
            *(['--blocks', *task.blocks] if task.blocks else []),
            *['--rows', str(self.rows_file), *as_options(self.options)],
        )

    def _row_options(self) -> list[str]:
        """What only the suite knows about the result rows of a trained model."""
        columns = dict(
            task=self.task.kind,
            method=self.method.name,
            labels=''.join(self.task.labels),
            label=self.suite.label,
            data=self.task.data,
        )
        pairs = [f'{name}={value}' for name, value in columns.items() if value]
        return ['--rows', str(self.rows_file), '--row', *pairs]


LAST = '{last checkpoint}'  # replaced by the path when the training has ended


def launch(config: str, settings: list[str], gpus: int, slurm: str | None, name: str) -> list[str]:
    """The command that trains on this number of GPUs."""
    if slurm:
        script = str(REPOSITORY / 'tools' / 'slurm_train.sh')
        return [script, slurm, name.replace('/', '.'), config, str(max(gpus, 1)), *settings]
    if gpus > 1:
        return [str(REPOSITORY / 'tools' / 'dist_train.sh'), config, str(gpus), *settings]
    return tool('train.py', config, *settings)


def tool(name: str, *args: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / 'tools' / name), *args]


def as_options(values: dict[str, Any]) -> list[str]:
    """``--cfg-options`` (and ``--data``) with config values; empty if there are none.

    Raises:
        ValueError: A text that no command line can hold.
    """
    images = values.get(IMAGES) or []
    data = ['--data', *([images] if isinstance(images, str) else map(str, images))] if images else []
    pairs = []
    for key, value in _flat({key: value for key, value in values.items() if key != IMAGES}):
        try:
            pairs.append(f'{key}={format_value(value)}')
        except ValueError as error:
            raise ValueError(f'option {key}: {error}') from None
    return [*data, *(['--cfg-options', *pairs] if pairs else [])]


def _flat(values: dict[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
    pairs = []
    for key, value in values.items():
        pairs += _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else [(f'{prefix}{key}', value)]
    return pairs


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a work directory.

    Raises:
        FileNotFoundError: The directory has none.
    """
    note = folder / 'last_checkpoint'
    if not note.is_file():
        raise FileNotFoundError(f'{folder} has no {note.name}, so its training has not finished: run it first')
    path = Path(note.read_text().strip())
    return path if path.is_file() else folder / path.name  # the folder may have been moved


def make_cells(suite: Suite, root: Path) -> list[Cell]:
    """All cells: pretrainings, then tasks, each by seed."""
    pretrainings = {
        (name, method.name, seed): Cell(suite, training, method, seed, root)
        for name, training in suite.pretrainings.items()
        for seed in suite.seeds
        for method in suite.methods
        if method.pretrained
    }
    cells = list(pretrainings.values())
    for task in suite.tasks:
        cells += [
            Cell(suite, task, method, seed, root, pretrainings.get((task.origin, method.name, seed)))
            for seed in task.seeds
            for method in suite.methods
        ]
    return cells


def matching(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Cells whose name matches a pattern (``*`` as in a shell), or whose task or pretraining has that name.

    Raises:
        ValueError: A pattern matches no cell.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {cell.name for cell in cells if fnmatch(cell.name, pattern) or cell.training.name == pattern}
        if not found:
            raise ValueError(f'no cell is called {pattern!r}; there are {", ".join(cell.name for cell in cells)}')
        chosen |= found
    return [cell for cell in cells if cell.name in chosen]


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Matching cells and the pretrainings that they need; all cells without patterns."""
    if not patterns:
        return list(cells)
    chosen = {cell.name for cell in matching(cells, patterns)}
    chosen |= {cell.needs.name for cell in cells if cell.name in chosen and cell.needs}
    return [cell for cell in cells if cell.name in chosen]


def suite_folder(suite: Suite) -> Path:
    """Default folder of a suite's runs and report."""
    return runs_folder() / 'work_dirs' / 'suites' / (suite.path.stem + (f'_{suite.size}' if suite.size else ''))


def suite_command(cell: Cell) -> str:
    """The command that runs the suite of a cell, as typed at the top of the repository."""
    words = ['tools/suite.py', shown(cell.suite.path.resolve())]
    if cell.suite.size:
        words += ['--size', cell.suite.size]
    if cell.suite.images:
        words += ['--data', *cell.suite.images]
    if cell.root != suite_folder(cell.suite):
        words += ['--out', shown(cell.root)]
    return as_typed(shlex.join(words))


def shell(command: Sequence[str]) -> str:
    """A command as typed at the top of the repository."""
    words = command[1:] if command[0] == sys.executable else command
    return as_typed(shlex.join(word.removeprefix(f'{REPOSITORY}/') for word in words))
