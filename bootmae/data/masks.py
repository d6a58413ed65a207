"""Masks drawn in the loader's workers, together with the images."""

from collections.abc import Sequence

from mmcv.transforms import BaseTransform
from mmengine.utils import to_2tuple
from mmpretrain.registry import TRANSFORMS

from ..models.masking import BlockMasking
from ..models.vit import patch_grid


@TRANSFORMS.register_module()
class DrawMask(BaseTransform):
    """Add ``ids_shuffle`` (N,) to a sample, drawn from numpy's global generator.

    ``SeededSamples`` seeds that generator for each sample, so the mask depends on seed, epoch and image alone.
    ``PackInputs(algorithm_keys=['ids_shuffle'])`` passes it to the model.

    Args:
        img_size: Size of the crop in pixels, a number or (height, width).
        patch_size: Size of a patch in pixels, a number or (height, width).
        masking: Arguments of :class:`BlockMasking` except the grid, the same as the model's ``masking``.
    """

    def __init__(self, img_size: int | Sequence[int] = 224, patch_size: int | Sequence[int] = 16, **masking):
        grid = patch_grid(tuple(to_2tuple(img_size)), tuple(to_2tuple(patch_size)))
        self.masking = BlockMasking(grid=grid, **masking)

    def transform(self, results: dict) -> dict:
        results['ids_shuffle'] = self.masking.draw_ids_shuffle()
        return results
