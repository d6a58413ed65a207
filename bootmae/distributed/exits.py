"""How a command ends: exit codes that a scheduler can act on, and the exceptions that carry them."""

USER_ERROR = 2  # something given is wrong; the message names it and the remedy
NONFINITE = 3  # losses or gradients were not finite several times in a row
BAD_DATA = 4  # more images are unreadable than the run may skip
LOST_RANK = 5  # another process of the run died or hangs
REQUEUE = 75  # stopped by a signal after saving: start the same command again, with --resume


class RunStopped(Exception):
    """A run that ends before its time, in good order: what is saved is whole. ``code`` is the exit code."""

    code = 1


class NonFiniteError(RunStopped):
    """Losses or gradients were not finite several times in a row.

    ``checkpoint`` is the newest one of before them, None where there is none.
    """

    code = NONFINITE
    checkpoint: str | None = None


class BadDataError(RunStopped):
    """More images are unreadable than the run may skip."""

    code = BAD_DATA


class Requeue(RunStopped):
    """A signal asked the run to stop; it has saved, and can go on with ``--resume``."""

    code = REQUEUE
