"""Keeps mmengine's log and registry scope out of the programs that use this package."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

NAME = 'bootmae.api'


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide warnings and log lines below errors, also from the log file of an earlier run; restore the default scope."""
    scopes = DefaultScope._instance_dict.copy()
    MMLogger.get_instance(NAME, log_level='ERROR')  # the newest logger is the current one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of mmseg's losses, for example
            yield
    finally:
        MMLogger._instance_dict.pop(NAME, None)  # another thread may have been faster
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)
