"""Holds the log back until a run starts, so that the terminal shows a user error alone, and keeps dumps off it."""

import functools
import logging

from mmengine.logging import MMLogger
from mmengine.model import BaseModule

MINUTE = 60.0  # seconds after which a slow start is shown all the same


class HeldConsole(logging.Handler):
    """Keeps the records of a logger's console handler until :meth:`show`. The log file gets them at once.

    Args:
        logger: the logger, whose console handler is replaced by this one until then.
    """

    def __init__(self, logger: logging.Logger):
        super().__init__()
        self.logger, self.held = logger, []
        self.console = next((item for item in logger.handlers if type(item) is logging.StreamHandler), None)
        if self.console is not None:
            self.setLevel(self.console.level)
            logger.handlers[logger.handlers.index(self.console)] = self

    def emit(self, record: logging.LogRecord) -> None:
        self.held.append(record)
        if record.created - self.held[0].created > MINUTE:
            self.show()

    def show(self) -> None:
        """Print what was held, and everything that follows at once."""
        if self in self.logger.handlers:
            self.logger.handlers[self.logger.handlers.index(self)] = self.console
        for record in self.held:
            self.console.handle(record)
        self.held.clear()


_dump = BaseModule._dump_init_info


@functools.wraps(_dump)
def dump_to_files(module: BaseModule) -> None:
    """Write the initialization of each parameter to log files only.

    Outside a run there is no log file, and mmengine's ``init_weights()`` prints three lines per parameter to the
    console: 190 lines before the one that tools/knn.py is called for.
    """
    if any(isinstance(handler, logging.FileHandler) for handler in MMLogger.get_current_instance().handlers):
        _dump(module)


BaseModule._dump_init_info = dump_to_files
