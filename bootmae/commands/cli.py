"""What all commands share: user errors, and runs that end before their time, in one line."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ..distributed.exits import USER_ERROR, RunStopped

USER_ERRORS = (ValueError, OSError)  # OSError: no such file, no permission, no room


def main(command: Callable[[], int | None]) -> None:
    """Run a command; a user error becomes one line on stderr and exit code 2, a stopped run one with its own code.

    Set ``BOOTMAE_TRACEBACK=1`` to see where it was raised.
    """
    try:
        leave(command() or 0)
    except (*USER_ERRORS, RunStopped) as error:
        if os.environ.get('BOOTMAE_TRACEBACK'):
            raise
        stopped = isinstance(error, RunStopped)
        print(f'{"stopped" if stopped else "error"}: {error}', file=sys.stderr)
        leave(error.code if stopped else USER_ERROR)


def leave(code: int) -> NoReturn:
    """End this process; one of several at once, after what Python does at its exit, but without taking itself down.

    gloo's threads may still let go of a tensor of the last exchange, for which they need a Python that is there:
    otherwise the process aborts ("terminate called without an active exception"), on a busy machine now and then.
    """
    dist = sys.modules.get('torch.distributed')
    if dist is None or not dist.is_available() or not dist.is_initialized():
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
