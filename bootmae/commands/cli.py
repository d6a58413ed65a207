"""Entry point of all commands: it reports user errors and stopped runs in one line."""

import argparse
import atexit
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ..distributed.exits import INTERRUPTED, MESSAGES, USER_ERROR, Progress, RunStopped
from ..places import as_typed

BATCH_TOO_LARGE = (
    '{} Use a smaller batch_size of the data loader (a training then accumulates gradients and keeps the global batch '
    'of its recipe) or model.backbone.with_cp=True (not for the pretraining of MAE). A run continues with --resume. '
    'docs/recipes.md#gpu-memory has estimates'
)
WORKER_DIED = (
    '{} The memory of the machine or /dev/shm was probably too small: use fewer num_workers of the data loader; '
    'tools/doctor.py checks /dev/shm. A run continues with --resume'
)
TOO_MANY_FILES = (
    '{}: run "ulimit -n 65536" first, or use fewer num_workers of the data loader. A run continues with --resume'
)
TOO_MANY_PROCESSES = (
    '{}: this user has too many processes and threads: raise the limit (ulimit -u, or pids of a container), or use '
    'fewer num_workers of the data loader. A run continues with --resume'
)
HOME = re.compile(r'^([\w.-]+=)?~(?=/|$)')  # a shell leaves it in --work-dir=~/runs and creates a folder named ~
USER_ERRORS = (ValueError, OSError)  # OSError: no such file, no permission, disk full


def main(command: Callable[[], int | None]) -> None:
    """Run a command and exit with its code.

    A user error is printed as one line on stderr, with exit code 2, and so is a lack of memory. A stopped run is
    printed the same way, with its own exit code. Any other exception before the end of the first training step is a
    user error too, because libraries raise all kinds for a wrong setting. Set ``BOOTMAE_TRACEBACK=1`` to see the
    traceback.
    """
    if MESSAGES in os.environ and os.environ.get('RANK', '0') != '0':
        argparse.ArgumentParser._print_message = lambda *args: None  # type: ignore[method-assign]  # rank 0 prints it
    if hasattr(sys.stdout, 'reconfigure'):  # a file name that is not valid UTF-8 must not end a command
        sys.stdout.reconfigure(errors='backslashreplace')
    sys.argv[1:] = [HOME.sub(lambda found: (found[1] or '') + os.path.expanduser('~'), word) for word in sys.argv[1:]]
    try:
        check_given(sys.argv[1:])
        leave(command() or 0)
    except (*USER_ERRORS, RunStopped) as error:
        if os.environ.get('BOOTMAE_TRACEBACK'):
            raise
        if isinstance(error, RunStopped):
            say(f'stopped: {error}')
            leave(error.code)
        say(f'error: {advice_for(error) or error}')
        leave(USER_ERROR)
    except Exception as error:
        advice = advice_for(error)
        if os.environ.get('BOOTMAE_TRACEBACK') or (Progress.trained and not advice):
            raise
        say(f'error: {advice or describe(error)}')
        leave(USER_ERROR)
    except KeyboardInterrupt:
        say('stopped: Ctrl-C; nothing was saved')
        leave(INTERRUPTED)


def check_given(words: Sequence[str]) -> None:
    """Raise a ValueError for an empty argument: ``--init "$FILE"`` would start a run from random weights."""
    for number, word in enumerate(words, 1):
        if not word or re.fullmatch(r'--[\w-]+=', word):
            before = f' after {words[number - 2]}' if number > 1 and not word else f' ({word})' if word else ''
            raise ValueError(f'argument {number}{before} is empty: is a variable of the shell not set?')


def advice_for(error: Exception) -> str:
    """Return what to do about a lack of memory, which can end any step of a run; empty for other errors."""
    message = str(error)
    if type(error).__name__ == 'OutOfMemoryError' or 'DefaultCPUAllocator: ' in message:
        return BATCH_TOO_LARGE.format(message.splitlines()[0])
    if message.startswith('DataLoader worker (pid'):
        return WORKER_DIED.format(message.splitlines()[0])
    if 'Too many open files' in message:
        return TOO_MANY_FILES.format(message.split('. ')[0])
    if "can't start new thread" in message or isinstance(error, BlockingIOError):  # EAGAIN of fork()
        return TOO_MANY_PROCESSES.format(message)
    return ''


def describe(error: Exception) -> str:
    """Return the last line of a traceback with the place where the exception was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    file = '/'.join(Path(place.filename).parts[-3:])
    message = str(error) or 'no message'
    return (
        f'{type(error).__name__}: {message} ({file}, line {place.lineno}). Check the settings that it is about; '
        'BOOTMAE_TRACEBACK=1 shows the whole traceback'
    )


def say(line: str) -> None:
    """Print the last line on stderr; a process of ``tools/dist_train.sh`` leaves it to the launcher."""
    line = as_typed(line)
    folder = os.environ.get(MESSAGES)
    if folder is None:
        with suppress(OSError):  # nobody reads it anymore, but the exit code counts
            print(line, file=sys.stderr, flush=True)
    else:
        Path(folder, os.environ.get('RANK', '0')).write_text(line, encoding='utf-8')


def leave(code: int) -> NoReturn:
    """End this process. A process of a distributed run skips the interpreter shutdown after its exit handlers.

    gloo's threads may still release a tensor of the last collective, which needs a running interpreter. Otherwise the
    process sometimes aborts on a busy machine ("terminate called without an active exception").
    """
    dist = sys.modules.get('torch.distributed')
    if dist is None or not dist.is_available() or not dist.is_initialized():
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if the shell has closed it
        with suppress(OSError):
            stream.flush()
    os._exit(code)
