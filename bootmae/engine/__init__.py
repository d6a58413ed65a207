from . import hooks, metrics, optim, runner, schedule  # noqa: F401
