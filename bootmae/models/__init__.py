from .. import compat

compat.apply()

from .bootmae import BootMAE  # noqa: E402
from .mae import BlockMaskedMAEViT, PerChannelMAEHead  # noqa: E402
from .masking import BlockMasking  # noqa: E402
from .preprocessor import PretrainPreprocessor  # noqa: E402
from .vit import PlainViT  # noqa: E402

__all__ = ['BlockMaskedMAEViT', 'BlockMasking', 'BootMAE', 'PerChannelMAEHead', 'PlainViT', 'PretrainPreprocessor']
