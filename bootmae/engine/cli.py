"""What all commands share: user errors in one line."""

import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, FileExistsError)


def main(command: Callable[[], int | None]) -> None:
    """Run a command; a user error becomes one line on stderr and exit code 2.

    Set ``BOOTMAE_TRACEBACK=1`` to see where it was raised.
    """
    import os
    try:
        sys.exit(command() or 0)
    except USER_ERRORS as error:
        if os.environ.get('BOOTMAE_TRACEBACK'):
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
