from . import finite, heartbeat, hooks, loops, metrics, optim, runner, saving, schedule, watch  # noqa: F401
