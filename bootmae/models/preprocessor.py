"""What images go through on the device before a pretraining model sees them."""

from mmengine.structures import BaseDataElement
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS


@MODELS.register_module()
class PretrainPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's, but that data samples stay where they are: it copies each of them, 16 us of the host's time.

    The model takes what it needs of them, which is the mask orders, all at once. And channels are flipped: mmpretrain
    indexes them with a list, which torch sends to the GPU, and the host waits for it in each step.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.flips_channels, self._channel_conversion = self._channel_conversion, False

    def forward(self, data: dict, training: bool = False) -> dict:
        inputs = self.cast_data(data['inputs'])
        if self.flips_channels:
            inputs = [view.flip(1) for view in inputs] if isinstance(inputs, list) else inputs.flip(1)
        return super().forward(dict(data, inputs=inputs), training)

    def cast_data(self, data):
        return data if isinstance(data, BaseDataElement) else super().cast_data(data)
