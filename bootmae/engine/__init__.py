from . import (  # noqa: F401
    finite,
    heartbeat,
    hooks,
    loops,
    monitor,
    online,
    optim,
    pictures,
    runner,
    saving,
    schedule,
    watch,
)
