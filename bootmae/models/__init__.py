from .bootmae import BootMAE
from .masking import BlockMasking
from .preprocessor import PretrainPreprocessor
from .vit import PlainViT

__all__ = ['BlockMasking', 'BootMAE', 'PlainViT', 'PretrainPreprocessor']
