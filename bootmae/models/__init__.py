from .bootmae import BootMAE
from .masking import BlockMasking
from .vit import PlainViT

__all__ = ['BlockMasking', 'BootMAE', 'PlainViT']
