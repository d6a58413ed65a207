"""Mask orders drawn with the images, in the loader's workers."""

from collections.abc import Sequence

from mmcv.transforms import BaseTransform
from mmengine.utils import to_2tuple
from mmpretrain.registry import TRANSFORMS

from ..models.masking import BlockMasking
from ..models.vit import patch_grid


@TRANSFORMS.register_module()
class DrawMask(BaseTransform):
    """Adds ``ids_shuffle`` (N,) to a sample, drawn from numpy's global generator.

    That generator is seeded for each sample (``SeededSamples``), so a mask is a function of seed, epoch and image.
    ``PackInputs`` hands it to the model with ``algorithm_keys=['ids_shuffle']``.

    Args:
        img_size: of the crop, a number or (height, width) in pixels.
        patch_size: a number or (height, width) in pixels.
        masking: arguments of :class:`BlockMasking` but the grid; the model's ``masking``.
    """

    def __init__(self, img_size: int | Sequence[int] = 224, patch_size: int | Sequence[int] = 16, **masking):
        grid = patch_grid(tuple(to_2tuple(img_size)), tuple(to_2tuple(patch_size)))
        self.masking = BlockMasking(grid=grid, **masking)

    def transform(self, results: dict) -> dict:
        results['ids_shuffle'] = self.masking.draw_ids_shuffle()
        return results
