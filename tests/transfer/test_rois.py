"""Proposals keep their rank and boxes their position under bfloat16."""

import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch.testing import assert_close

from bootmae.transfer.rois import ExactRoIs, ExactRPNHead

SETTINGS = dict(
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2), out_channels=2, featmap_strides=[4, 8]
)
BOXES = torch.tensor([[0, 1003.3, 997.9, 1050.4, 1043.6], [0, 517.2, 1021.4, 837.7, 1333.1]])


@pytest.fixture
def levels():
    """Two levels of an image of 1344 x 1344 pixels that hold coordinates, in units of 1/100 of the image."""
    maps = []
    for stride in SETTINGS['featmap_strides']:
        place = torch.arange(1344 // stride) * stride / 13.44
        maps.append(torch.stack(torch.meshgrid(place, place, indexing='ij')).unsqueeze(0))
    return maps


def test_float32_is_mmdets(levels):
    assert_close(ExactRoIs(**SETTINGS)(levels, BOXES), SingleRoIExtractor(**SETTINGS)(levels, BOXES), rtol=0, atol=0)


def test_bfloat16_maps_are_pooled_at_the_right_place(levels):
    low = [level.bfloat16() for level in levels]
    right = SingleRoIExtractor(**SETTINGS)([level.float() for level in low], BOXES)
    ours = ExactRoIs(**SETTINGS)(low, BOXES)
    assert ours.dtype == torch.float32
    assert_close(ours, right, rtol=0, atol=0)
    center = (BOXES[:, [2, 1]] + BOXES[:, [4, 3]]) / 2 / 13.44
    assert_close(ours[:, :, 3, 3], center, rtol=0, atol=0.3)


def test_mmdets_alone_still_fails_or_moves_the_boxes(levels):
    """mmcv's compiled ops raise an error; without them boxes move. When this fails, ExactRoIs is not needed anymore."""
    low = [level.bfloat16() for level in levels]
    try:
        theirs = SingleRoIExtractor(**SETTINGS)(low, BOXES)
    except NotImplementedError:
        return
    assert (theirs.float() - ExactRoIs(**SETTINGS)(low, BOXES)).abs().amax() * 13.44 > 2, 'in pixels'


def test_gradients_reach_the_maps(levels):
    low = [level.bfloat16().requires_grad_() for level in levels]
    ExactRoIs(**SETTINGS)(low, BOXES).sum().backward()
    assert [level.grad.dtype for level in low] == [torch.bfloat16] * 2
    # each of the two boxes hands 7 x 7 ones to the two channels of its level
    assert [level.grad.float().sum().item() for level in low] == pytest.approx([98, 98], rel=0.02)


@pytest.fixture
def propose():
    """``propose(head, scores)``: scores (K,) of the proposals that a head makes of logits (h, w), best first."""
    init_default_scope('mmdet')
    nms = ConfigDict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)

    def run(head: type, logits: torch.Tensor) -> torch.Tensor:
        model = head(
            in_channels=4,
            num_classes=1,
            test_cfg=nms,
            anchor_generator=dict(type='AnchorGenerator', scales=[1], ratios=[1.0], strides=[8]),
        )
        offsets = torch.zeros(1, 4, *logits.shape, dtype=logits.dtype)
        return model.predict_by_feat(
            [logits[None, None]], [offsets], batch_img_metas=[dict(img_shape=(64, 64))], cfg=nms
        )[0].scores

    return run


def test_proposals_of_bfloat16_logits_are_ranked_exactly(propose):
    """Logits 6.00, 6.03, ... differ in bfloat16, but their sigmoids do not."""
    logits = (6 + torch.arange(64) / 32).view(8, 8)
    assert torch.equal(logits.bfloat16().float(), logits)
    assert len(logits.bfloat16().sigmoid().unique()) < 3
    found = propose(ExactRPNHead, logits.bfloat16())
    assert found.dtype == torch.float32
    assert_close(found, logits.flatten().flip(0).sigmoid(), rtol=0, atol=1e-6)
    assert_close(found, propose(RPNHead, logits), rtol=0, atol=0)
