"""Data preprocessors: normalization and augmentation of image batches on the device."""

import functools
from collections.abc import Sequence

import torch
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import BaseDataElement
from mmpretrain.models.utils import ClsDataPreprocessor, SelfSupDataPreprocessor
from mmpretrain.registry import MODELS
from timm.data.random_erasing import RandomErasing


def take_any_channels() -> None:
    """Let all data preprocessors normalize any number of channels; mmengine refuses all but 1 and 3."""
    plain = ImgDataPreprocessor.__init__
    if hasattr(plain, '__wrapped__'):
        return

    @functools.wraps(plain)
    def init(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, *args, **kwargs) -> None:
        if mean is None or std is None or len(mean) in (1, 3):
            plain(self, mean, std, *args, **kwargs)
            return
        plain(self, mean[:1], std[:1], *args, **kwargs)
        for name, values in (('mean', mean), ('std', std)):
            setattr(self, name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    ImgDataPreprocessor.__init__ = init


take_any_channels()


@MODELS.register_module()
class PretrainPreprocessor(SelfSupDataPreprocessor):
    """mmpretrain's preprocessor for pretraining, without two delays of the host in each step.

    Data samples are not moved to the device one by one, which takes 16 us each; the model moves all ``ids_shuffle`` at
    once. Channels are converted by ``flip``, because indexing with a list, as in mmpretrain, waits for the GPU.
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
    """mmpretrain's preprocessor for classification, with timm's random erasing between normalization and mixup.

    mmpretrain's own transform erases before normalization. Its noise is rounded to uint8 and clipped to 0..255, so with
    mean = std = 127.5 its standard deviation is 0.72 instead of 1.

    Args:
        *args: arguments of mmpretrain's ``ClsDataPreprocessor``.
        erase_prob: probability that a rectangle of a training image is filled with N(0, 1).
        **kwargs: arguments of mmpretrain's ``ClsDataPreprocessor``.
    """

    def __init__(self, *args, erase_prob: float = 0.25, **kwargs):
        super().__init__(*args, **kwargs)
        self.erasing = RandomErasing(erase_prob, mode='pixel')
        self.mixing, self.batch_augments = self.batch_augments, self.augment
        self.to_onehot = True  # the base class augments samples with scores only

    def augment(self, images: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Erase and mix normalized images (B, C, H, W), in place, and mix their scores (B, classes)."""
        self.erasing.device = images.device
        self.erasing(images)
        return (images, scores) if self.mixing is None else self.mixing(images, scores)
