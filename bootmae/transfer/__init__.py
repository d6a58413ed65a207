from .backbone import TransferViT
from .pyramid import SimplePyramid, TapPyramid

__all__ = ['SimplePyramid', 'TapPyramid', 'TransferViT']
