"""A data set whose samples are functions of (seed, epoch, index), and which outlives unreadable files."""

from collections.abc import Iterator

import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset, get_worker_info

from .seeding import sample_seeds, seed_generators
from .tar import readable

MAX_WORKERS = 256
SLOTS = 256  # unreadable samples of a worker that are remembered until the main process asks
REPLACEMENTS = 16  # tries in a row before a sample is given up
BUGS = (TypeError, AttributeError, NameError, KeyError, ImportError, NotImplementedError)  # of code, not of a file


class UnreadableSample(ValueError):
    """A sample that cannot be read. One line, also where a worker's traceback has been put around it."""

    def __str__(self) -> str:
        return super().__str__().strip().rpartition(f'{type(self).__name__}: ')[2]


@DATASETS.register_module()
class SeededSamples(Dataset):
    """Wraps any data set of mmengine, its wrappers included.

    A key is ``epoch * len(self) + index`` (:class:`StreamSampler`). The pipeline of that sample sees generators seeded
    from (seed, epoch, index), whichever process, worker or run loads it. Without workers these are the generators of
    the training process: what comes after has to be seeded again (:func:`seed_step`).

    A sample that cannot be read is reported and replaced by another one, which depends on (seed, epoch, index) alone.
    Where a sample is the bytes of a file, which somebody else decodes (:class:`DeviceStage`), its data sample carries
    ``sample_key`` and ``sample_attempt``, with which that one can have it replaced in the same way (:meth:`replace`).

    Args:
        dataset: the data set or its config.
        seed: of the run; may be set until the first sample is loaded.
        bad: ``skip`` or ``raise`` for samples that cannot be read. Errors of code are always raised.

    Raises:
        ValueError: for another value of ``bad``.
        UnreadableSample: when loading, under ``raise``, and for ``REPLACEMENTS`` unreadable ones in a row. Names the
            file and the reason.
    """

    def __init__(self, dataset: dict | Dataset, seed: int = 0, bad: str = 'skip'):
        if bad not in ('skip', 'raise'):
            raise ValueError(f"bad={bad!r}: give 'skip' or 'raise', what to do with images that cannot be read")
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed, self.bad = seed, bad
        # Shared with the workers, a row for each and the first for this process. The main process alone reads them.
        self._loading = torch.full((MAX_WORKERS + 1,), -1).share_memory_()
        self._bad = torch.zeros(MAX_WORKERS + 1, 1 + SLOTS, dtype=torch.int64).share_memory_()  # count, then indices
        self._taken = [0] * (MAX_WORKERS + 1)
        self._reasons: dict[int, str] = {}  # of samples that were replaced from outside

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict:
        """That of the wrapped data set, class names above all."""
        return getattr(self.dataset, 'metainfo', {})

    def full_init(self) -> None:
        """Read the list of samples, if the wrapped data set does so late."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def get_data_info(self, key: int) -> dict:
        """What the wrapped data set knows of a sample without loading it."""
        return self.dataset.get_data_info(int(key) % len(self))

    def path(self, index: int) -> str:
        """Of a sample's image file; its number where there is no file."""
        info = self.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
        return readable(info['img_path']) if info.get('img_path') else f'sample {index}'

    def __getitem__(self, key: int):
        return self._first_readable(int(key), self._tries(int(key)))

    def replace(self, key: int, attempt: int, error: Exception):
        """What comes in the place of a sample that could be read, as bytes, but not be decoded.

        It is the one that would have come if reading had failed with ``error``, and the sample is reported likewise.

        Args:
            key: ``sample_key`` of its data sample.
            attempt: ``sample_attempt`` of its data sample.

        Raises:
            UnreadableSample: under ``raise``, and when as many replacements in a row have failed.
        """
        tries = self._tries(key)
        index = next(index for number, index in tries if number == attempt)
        self._reasons[index] = reason(error)
        self._report(index, attempt, error)
        return self._first_readable(key, tries)

    def _tries(self, key: int) -> Iterator[tuple[int, int]]:
        """Attempts, from 1 on, and the sample of each, with the generators seeded for it."""
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
        """Note an unreadable sample for :meth:`take_reports`, or raise."""
        if self.bad == 'raise' or attempt == REPLACEMENTS:
            raise UnreadableSample(
                f'{self.path(index)} cannot be read ({reason(error)}): mend or remove it; '
                'tools/verify_data.py finds all such files'
            ) from error
        row = _row()
        self._bad[row, 1 + self._bad[row, 0] % SLOTS] = index
        self._bad[row, 0] += 1  # last: the main process reads up to this count

    def take_reports(self) -> list[tuple[str, str]]:
        """Path and reason of samples that this process and its workers could not read since the last call.

        A worker says only which sample it was; the reason comes from a second attempt, here.
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
        """Files that this process and its workers are reading, or have read last."""
        indices = self._loading.tolist()
        return list(dict.fromkeys(self.path(index) for index in indices if index >= 0))


def _row() -> int:
    """Of this process in the shared tables."""
    worker = get_worker_info()
    return 0 if worker is None else 1 + worker.id % MAX_WORKERS


def _mark(item, key: int, attempt: int):
    """Tell the data sample of a file's bytes, a tensor (bytes, ), what to call it if they cannot be decoded."""
    if isinstance(item, dict) and isinstance(item.get('inputs'), torch.Tensor) and item['inputs'].ndim == 1:
        item['data_samples'].set_metainfo(dict(sample_key=key, sample_attempt=attempt))
    return item


def reason(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[-1]}' if lines else type(error).__name__
