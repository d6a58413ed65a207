from . import hooks, optim, runner, schedule  # noqa: F401
