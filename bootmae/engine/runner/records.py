"""What only records a run: if it cannot be written, usually because the disk is full, the run continues without it."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from json import JSONDecodeError
from pathlib import Path

from mmengine.fileio import dump
from mmengine.logging import print_log
from mmengine.visualization import BaseVisBackend, LocalVisBackend, TensorboardVisBackend

WRITES = ('add_image', 'add_scalar', 'add_scalars', 'close')  # an error at the start, in add_config, ends the run
PAUSE = 300.0  # seconds until a backend that has failed is tried again


@contextmanager
def optional(what: str | Path) -> Iterator[None]:
    """Log a failure to write something that the run can do without. mmengine's logger shows equal warnings once."""
    try:
        yield
    except (OSError, JSONDecodeError, UnicodeError) as error:  # the latter two for a damaged file that is added to
        text = f'{what} was not written: {error}. The run continues without it; free some space'
        print_log(text, 'current', logging.WARNING)


def append_text(path: str | Path, text: str) -> None:
    """Append text to a file, all of it or nothing: a reader would stumble over half a line.

    Raises:
        OSError: if it could not be written.
    """
    size = os.path.getsize(path) if os.path.exists(path) else 0
    try:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(text)
    except OSError:
        if os.path.exists(path):
            os.truncate(path, size)
        raise


class TolerantBackend:
    """Lets the writes of a visualization backend fail. After a failure it gets nothing for :data:`PAUSE` seconds.

    Args:
        backend: the backend, whose methods are replaced.
    """

    def __init__(self, backend: BaseVisBackend):
        self.backend, self.again = backend, 0.0
        for name in WRITES:
            setattr(backend, name, partial(self._call, getattr(backend, name)))
        if getattr(type(backend), '_dump', None) is LocalVisBackend._dump:
            backend._dump = append_values

    def _call(self, write: Callable, *args, **kwargs) -> None:
        if time.monotonic() < self.again:
            return
        folder = getattr(self.backend, '_save_dir', 'an unknown folder')  # a backend of the user may have none
        with optional(f'the log of {type(self.backend).__name__} in {folder}'):
            try:
                write(*args, **kwargs)
            except OSError:
                self.again = time.monotonic() + PAUSE
                if isinstance(self.backend, TensorboardVisBackend):
                    self.backend._env_initialized = False  # its writer has ended; the next call opens another file
                raise


def append_values(values: dict, path: str, kind: str) -> None:
    """Append a line of values to a file of ``LocalVisBackend``."""
    append_text(path, dump(values, file_format=kind) + '\n')


def tolerate_logs(logger: logging.Logger) -> None:
    """Let log file and output miss lines. Python would print a traceback for each of them; here stderr says it once."""
    for handler in logger.handlers:
        handler.handleError = partial(_miss, handler)  # type: ignore[method-assign]


def _miss(handler: logging.Handler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
    elif not getattr(handler, 'missed', False):
        handler.missed = True
        where = getattr(handler, 'baseFilename', 'the output')
        with suppress(OSError):  # the terminal may be a file on the same disk
            print(f'{where} was not written: {error}. The run continues', file=sys.stderr, flush=True)
