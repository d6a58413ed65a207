"""Exit codes that a scheduler can act on, and the exceptions that carry them."""

USER_ERROR = 2  # an argument, config or file is wrong; the message names it and the remedy
NONFINITE = 3  # losses or gradients were not finite several times in a row
BAD_DATA = 4  # more images are unreadable than the budget allows
LOST_RANK = 5  # another process of the run died or hangs
INTERRUPTED = 130  # Ctrl-C before the training, or twice; nothing was saved
REQUEUE = 75  # saved and stopped after a signal: start the same command again with --resume

MESSAGES = 'BOOTMAE_MESSAGES'  # folder in which processes leave their last line for the launcher, which prints one


class Progress:
    """Whether a training step has ended. Until then the cause of an exception is most likely a wrong setting."""

    trained = False


class RunStopped(Exception):
    """A run stops early in good order; its checkpoints are complete. ``code`` is the exit code."""

    code = 1


class NonFiniteError(RunStopped):
    """Losses or gradients were not finite several times in a row."""

    code = NONFINITE


class BadDataError(RunStopped):
    """More images are unreadable than the budget allows."""

    code = BAD_DATA


class Requeue(RunStopped):
    """A signal asked the run to stop; it is saved and continues with ``--resume``."""

    code = REQUEUE
