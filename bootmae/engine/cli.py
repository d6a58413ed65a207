"""What all commands share: user errors, and runs that end before their time, in one line."""

import os
import sys
from collections.abc import Callable

from .exits import USER_ERROR, RunStopped

USER_ERRORS = (ValueError, OSError)  # OSError: no such file, no permission, no room


def main(command: Callable[[], int | None]) -> None:
    """Run a command; a user error becomes one line on stderr and exit code 2, a stopped run one with its own code.

    Set ``BOOTMAE_TRACEBACK=1`` to see where it was raised.
    """
    try:
        sys.exit(command() or 0)
    except (*USER_ERRORS, RunStopped) as error:
        if os.environ.get('BOOTMAE_TRACEBACK'):
            raise
        stopped = isinstance(error, RunStopped)
        print(f'{"stopped" if stopped else "error"}: {error}', file=sys.stderr)
        sys.exit(error.code if stopped else USER_ERROR)
