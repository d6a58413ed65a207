"""A data set whose samples depend on (seed, epoch, index) alone, and which skips unreadable files."""

from collections.abc import Iterator

import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset, Subset, get_worker_info

from ..text import printable
from .images import check_image_whole
from .seeding import sample_seeds, seed_generators
from .tar import readable

MAX_WORKERS = 256
SLOTS = 256  # unreadable samples that a worker can store until the main process reads them
REPLACEMENTS = 16  # attempts before a sample is an error
BUGS = (TypeError, AttributeError, NameError, KeyError, ImportError, NotImplementedError)  # not caused by a file


class UnreadableSample(ValueError):
    """A sample that cannot be read. The message is one line even if a worker has wrapped it in its traceback."""

    def __str__(self) -> str:
        return super().__str__().strip().rpartition(f'{type(self).__name__}: ')[2]


class WrappedSamples(Dataset):
    """A wrapper around a data set of mmengine or one of its wrappers, which knows the file of each sample."""

    def __init__(self, dataset: dict | Dataset):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict:
        """Metadata of the wrapped data set, such as class names."""
        return getattr(self.dataset, 'metainfo', {})

    def full_init(self) -> None:
        """Load the list of samples if the wrapped data set does so lazily."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def record(self, index: int) -> dict:
        """Return the record of a sample, as its data set has it; empty if it has none."""
        dataset = self.dataset
        while isinstance(dataset, Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        return dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}

    def path(self, index: int) -> str:
        """Return the image file of a sample for messages, or its number if there is no file."""
        file = self.record(index).get('img_path')
        return printable(readable(file)) if file else f'sample {index}'


@DATASETS.register_module()
class NamedSamples(WrappedSamples):
    """Samples of an evaluation, which never replaces an image: the error of a broken one names its file.

    Args:
        dataset: The data set or its config.

    Raises:
        UnreadableSample: When loading a sample that cannot be read. Names the file and the reason.
    """

    def __getattr__(self, name: str):
        if name.startswith('__') or name == 'dataset':  # a worker asks before it has unpickled the attributes
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int):
        try:
            item = self.dataset[index]
            if file := self.record(index).get('img_path'):
                check_image_whole(file)
            return item
        except BUGS:
            raise
        except Exception as error:
            mask = self.record(index).get('seg_map_path')
            files = self.path(index) + (f' or its mask {printable(mask)}' if mask else '')
            raise UnreadableSample(
                f'{files} cannot be read ({reason(error)}), and an evaluation replaces no image: repair or '
                'remove it; tools/verify_data.py finds all such files'
            ) from error


@DATASETS.register_module()
class SeededSamples(WrappedSamples):
    """Wrap any data set of mmengine, including its wrappers.

    A key is ``epoch * len(self) + index``, see :class:`StreamSampler`. The pipeline runs with generators seeded from
    (seed, epoch, index), no matter which process, worker or run loads the sample. Without workers these are the
    generators of the training process, which must be seeded again for the step, see :func:`seed_step`.

    A sample that cannot be read is reported and replaced by another one, chosen from (seed, epoch, index) alone. If a
    sample consists of the bytes of a file that :class:`DeviceStage` decodes, its data sample carries ``sample_key`` and
    ``sample_attempt``, with which the stage can replace it in the same way, see :meth:`replace`.

    Args:
        dataset: The data set or its config.
        seed: Seed of the run. It may be set until the first sample is loaded.
        bad: ``skip`` or ``raise`` for samples that cannot be read. Programming errors are always raised.

    Raises:
        ValueError: For another value of ``bad``.
        UnreadableSample: When loading under ``raise``, or after ``REPLACEMENTS`` unreadable samples in a row. Names the
            file and the reason.
    """

    def __init__(self, dataset: dict | Dataset, seed: int = 0, bad: str = 'skip'):
        if bad not in ('skip', 'raise'):
            raise ValueError(f"bad={bad!r}: use 'skip' or 'raise' for images that cannot be read")
        super().__init__(dataset)
        self.seed, self.bad = seed, bad
        # Shared with the workers: row 0 belongs to this process, the others to the workers. Only this process reads.
        self._loading = torch.full((MAX_WORKERS + 1,), -1).share_memory_()
        self._bad = torch.zeros(MAX_WORKERS + 1, 1 + SLOTS, dtype=torch.int64).share_memory_()  # count, then indices
        self._taken = [0] * (MAX_WORKERS + 1)
        self._reasons: dict[int, str] = {}  # why samples were replaced through `replace`

    def get_data_info(self, key: int) -> dict:
        """Return the record of a sample without loading it."""
        return self.dataset.get_data_info(int(key) % len(self))

    def __getitem__(self, key: int):
        return self._first_readable(int(key), self._tries(int(key)))

    def replace(self, key: int, attempt: int, error: Exception):
        """Replace a sample whose bytes were read but cannot be decoded.

        The sample is reported and replaced as if reading had failed with ``error``.

        Args:
            key: ``sample_key`` of its data sample.
            attempt: ``sample_attempt`` of its data sample.
            error: The error of the decoder.

        Raises:
            UnreadableSample: Under ``raise``, or after ``REPLACEMENTS`` failures in a row.
        """
        tries = self._tries(key)
        index = next(index for number, index in tries if number == attempt)
        self._reasons[index] = reason(error)
        self._report(index, attempt, error)
        return self._first_readable(key, tries)

    def _tries(self, key: int) -> Iterator[tuple[int, int]]:
        """Yield (attempt, index) from attempt 1 on, and seed the generators for each."""
        epoch, index = divmod(key, len(self))
        seed_generators(self.seed, epoch, index)
        yield 1, index
        for attempt in range(1, REPLACEMENTS):
            index = sample_seeds(self.seed, epoch, index, attempt)[0] % len(self)
            seed_generators(self.seed, epoch, index, attempt)
            yield attempt + 1, index

    def _first_readable(self, key: int, tries: Iterator[tuple[int, int]]):
        for attempt, index in tries:
            self._loading[_row()] = index
            try:
                return _mark(self.dataset[index], key, attempt)
            except BUGS:
                raise
            except Exception as error:
                self._report(index, attempt, error)
        raise AssertionError('the last attempt reports with an error')

    def _report(self, index: int, attempt: int, error: Exception) -> None:
        """Store an unreadable sample for :meth:`take_reports`, or raise an error."""
        if self.bad == 'raise' or attempt == REPLACEMENTS:
            raise UnreadableSample(
                f'{self.path(index)} cannot be read ({reason(error)}): repair or remove it; '
                'tools/verify_data.py finds all such files'
            ) from error
        row = _row()
        self._bad[row, 1 + self._bad[row, 0] % SLOTS] = index
        self._bad[row, 0] += 1  # last: the main process reads up to this count

    def take_reports(self) -> list[tuple[str, str]]:
        """Return path and reason of all samples that could not be read since the last call.

        Workers store only the index; this process reads the sample again to find the reason.
        """
        counts = self._bad[:, 0].tolist()
        if counts == self._taken:
            return []
        found = []
        for row, (old, new) in enumerate(zip(self._taken, counts)):
            for k in range(max(old, new - SLOTS), new):
                index = int(self._bad[row, 1 + k % SLOTS])
                if index not in found:
                    found.append(index)
        self._taken = counts
        return [(self.path(index), self._reason(index)) for index in found]

    def _reason(self, index: int) -> str:
        if index in self._reasons:
            return self._reasons.pop(index)
        try:
            self.dataset[index]
        except Exception as error:
            return reason(error)
        return 'could not be read once; a second attempt succeeded'

    def loading_paths(self) -> list[str]:
        """Return the files that this process and its workers are reading or have just read."""
        indices = self._loading.tolist()
        return list(dict.fromkeys(self.path(index) for index in indices if index >= 0))


def _row() -> int:
    """Return the row of this process in the shared tables."""
    worker = get_worker_info()
    return 0 if worker is None else 1 + worker.id % MAX_WORKERS


def _mark(item, key: int, attempt: int):
    """Store key and attempt in the data sample of an encoded file (bytes,), for :meth:`SeededSamples.replace`."""
    if isinstance(item, dict) and isinstance(item.get('inputs'), torch.Tensor) and item['inputs'].ndim == 1:
        item['data_samples'].set_metainfo(dict(sample_key=key, sample_attempt=attempt))
    return item


def reason(error: Exception) -> str:
    """Format an exception as one line."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {printable(lines[-1])}' if lines else type(error).__name__
