"""Importing this module applies the work-arounds of compat.py and registers our classes with the OpenMMLab stack.

Configs name it in ``custom_imports``, and commands and scripts import it first. The metrics for mmdet and mmseg and the
scene data sets import all of mmdet and mmseg, so the configs that need them list them in ``custom_imports``.
"""

from . import compat

compat.apply()

from . import checkpoints, data, models, transfer  # noqa: E402, F401
from .engine.hooks import (  # noqa: E402, F401
    bad_images,
    checkpoint,
    class_results,
    collapse,
    ema,
    heartbeat,
    logging,
    nonfinite,
    online_probe,
    preemption,
    provenance,
    reconstruction,
)
from .engine.optimizers import layer_decay, schedule, wrappers  # noqa: E402, F401
from .engine.runner import loops, runner  # noqa: E402, F401
