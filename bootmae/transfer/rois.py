"""Proposals and RoI features under bfloat16: mmdet's classes with boxes and scores in float32.

Not imported with the package, because it imports mmdet's heads: configs name ``bootmae.transfer.rois.ExactRoIs``.
"""

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor


class ExactRPNHead(RPNHead):
    """mmdet's region proposal network, which decodes and ranks proposals in float32.

    In bfloat16 the best scores are 1/256 apart, so which proposals are kept would be left to chance; and on the CPU
    mmcv's compiled NMS refuses such scores.
    """

    def predict_by_feat(
        self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor], *args, **kwargs
    ) -> list:
        """Logits and box offsets of each level -> proposals of each image; see the base class."""
        cls_scores, bbox_preds = ([level.float() for level in levels] for levels in (cls_scores, bbox_preds))
        return super().predict_by_feat(cls_scores, bbox_preds, *args, **kwargs)


class ExactRoIs(SingleRoIExtractor):
    """mmdet's RoI extractor with box coordinates left in float32.

    The base class casts boxes to the type of the feature maps. In bfloat16, 8 bits long, a coordinate near 1000 is
    then off by up to 2 pixels, so boxes would be pooled beside their objects in training, but not in testing. And
    mmcv's compiled RoIAlign refuses bfloat16 maps.
    """

    def forward(
        self, feats: Sequence[torch.Tensor], rois: torch.Tensor, roi_scale_factor: float | None = None
    ) -> torch.Tensor:
        """Maps (B, C, h, w) of each level and boxes (K, 5) as [image, x1, y1, x2, y2] -> (K, C, size, size)."""
        return super().forward([level.float() for level in feats], rois, roi_scale_factor)
