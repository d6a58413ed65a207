"""What images go through on the device before a model sees them."""

import torch
from mmengine.structures import BaseDataElement
from mmpretrain.models.utils import ClsDataPreprocessor, SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from timm.data.random_erasing import RandomErasing


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


@MODELS.register_module()
class ErasingPreprocessor(ClsDataPreprocessor):
    """mmpretrain's for classification, with timm's random erasing after normalization and before mixing.

    mmpretrain's own transform erases before normalization: its noise is rounded to uint8 and clipped to 0..255, which
    at mean = std = 127.5 makes a standard deviation of 0.72 instead of 1.

    Args:
        erase_prob: probability that a rectangle of an image is filled with N(0, 1) while training.
        args, kwargs: of mmpretrain's ``ClsDataPreprocessor``.
    """

    def __init__(self, *args, erase_prob: float = 0.25, **kwargs):
        super().__init__(*args, **kwargs)
        self.erasing = RandomErasing(erase_prob, mode='pixel')
        self.mixing, self.batch_augments = self.batch_augments, self.augment
        self.to_onehot = True  # the base class augments only what has scores

    def augment(self, images: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized images (B, C, H, W), changed in place, and scores (B, classes)."""
        self.erasing.device = images.device
        self.erasing(images)
        return (images, scores) if self.mixing is None else self.mixing(images, scores)
