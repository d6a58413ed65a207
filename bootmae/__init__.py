"""BootMAE for the OpenMMLab stack. Importing this package registers everything that configs name."""

from . import compat

compat.apply()

from . import checkpoints, data, engine, models, transfer  # noqa: E402, F401

__version__ = '0.1.0'
