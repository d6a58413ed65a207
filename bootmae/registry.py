"""Importing this module registers the package with the OpenMMLab stack and applies the work-arounds of compat.py.

Configs name it in ``custom_imports``; commands and scripts import it first. The metrics of mmdet and mmseg and the data
sets of scenes are not here, because they import all of mmdet and mmseg: the configs that need them name them.
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
