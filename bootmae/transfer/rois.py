"""mmdet's proposals and RoI features with boxes and scores in float32 under bfloat16.

The package does not import this module, because it imports mmdet's heads. Configs name
``bootmae.transfer.rois.ExactRoIs``.
"""

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor


class ExactRPNHead(RPNHead):
    """mmdet's region proposal network, but with float32 for the decoding and ranking of proposals.

    In bfloat16 the best scores are 1/256 apart, so ties would decide which proposals are kept. On the CPU, mmcv's
    compiled NMS does not take bfloat16 scores at all.
    """

    def predict_by_feat(
        self, cls_scores: Sequence[torch.Tensor], bbox_preds: Sequence[torch.Tensor], *args, **kwargs
    ) -> list:
        """Logits and box offsets of each level -> proposals of each image; see the base class."""
        cls_scores, bbox_preds = ([level.float() for level in levels] for levels in (cls_scores, bbox_preds))
        return super().predict_by_feat(cls_scores, bbox_preds, *args, **kwargs)


class ExactRoIs(SingleRoIExtractor):
    """mmdet's RoI extractor with box coordinates left in float32.

    The base class casts boxes to the type of the feature maps. The 8-bit significand of bfloat16 moves a coordinate
    near 1000 by up to 2 pixels, in training but not in testing. mmcv's compiled RoIAlign does not take bfloat16 maps.
    """

    def forward(
        self, feats: Sequence[torch.Tensor], rois: torch.Tensor, roi_scale_factor: float | None = None
    ) -> torch.Tensor:
        """Maps (B, C, h, w) of each level, boxes (K, 5) as [image, x1, y1, x2, y2] -> features (K, C, size, size)."""
        return super().forward([level.float() for level in feats], rois, roi_scale_factor)
