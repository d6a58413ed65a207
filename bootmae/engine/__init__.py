from . import finite, heartbeat, hooks, loops, optim, runner, saving, schedule, watch  # noqa: F401
