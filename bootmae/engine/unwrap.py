"""The model within its wrappers."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def bare_model(runner) -> nn.Module:
    """The model within wrappers for several processes and for test-time augmentation."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.module if isinstance(model, BaseTTAModel) else model
