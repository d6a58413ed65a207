"""What images go through on the device before a pretraining model sees them."""

from mmengine.structures import BaseDataElement
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS


@MODELS.register_module()
class PretrainPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's, but that data samples stay where they are: it copies each of them, 16 us of the host's time.

    The model takes what it needs of them, which is the mask orders, all at once.
    """

    def cast_data(self, data):
        return data if isinstance(data, BaseDataElement) else super().cast_data(data)
