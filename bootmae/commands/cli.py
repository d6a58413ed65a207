"""Entry point of all commands: it reports user errors and stopped runs in one line."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ..distributed.exits import USER_ERROR, RunStopped

USER_ERRORS = (ValueError, OSError)  # OSError: no such file, no permission, disk full


def main(command: Callable[[], int | None]) -> None:
    """Run a command and exit with its code.

    A user error is printed as one line on stderr, with exit code 2. A stopped run is printed the same way, with its own
    exit code. Set ``BOOTMAE_TRACEBACK=1`` to see the traceback.
    """
    if hasattr(sys.stdout, 'reconfigure'):  # a file name that is not valid UTF-8 must not end a command
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        leave(command() or 0)
    except (*USER_ERRORS, RunStopped) as error:
        if os.environ.get('BOOTMAE_TRACEBACK'):
            raise
        kind, code = ('stopped', error.code) if isinstance(error, RunStopped) else ('error', USER_ERROR)
        print(f'{kind}: {error}', file=sys.stderr)
        leave(code)


def leave(code: int) -> NoReturn:
    """End this process. A process of a distributed run skips the interpreter shutdown after its exit handlers.

    gloo's threads may still release a tensor of the last collective, which needs a running interpreter. Otherwise the
    process sometimes aborts on a busy machine ("terminate called without an active exception").
    """
    dist = sys.modules.get('torch.distributed')
    if dist is None or not dist.is_available() or not dist.is_initialized():
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
