"""Mask R-CNN gives the same losses and results with mmcv's compiled ops and with the stand-in from torchvision."""

import sys
from collections import Counter
from pathlib import Path

import mmcv.ops  # noqa: F401
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS

from bootmae import compat
from bootmae.config.load import load_config

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'det' / 'mask_rcnn_debug.py'
USERS = ('mmcv.ops.nms', 'mmcv.ops.roi_align')  # modules that call the ops, each through its `ext_module`
COMPILED = sys.modules[compat.OPS]

needs_both = pytest.mark.skipif(not hasattr(COMPILED, '__file__'), reason='mmcv has no compiled ops here to compare')


class Counting:
    """The ops of a module, and the number of calls of each."""

    def __init__(self, module):
        self.module, self.calls = module, Counter()

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls[name] += 1
            return getattr(self.module, name)(*args, **kwargs)

        return call


@pytest.fixture(params=['debug', 'rois'])
def detector(request, tmp_path):
    """The debug config's detector with random weights, and a batch of two scenes; as `rois`, with the RoI extractor and
    the proposal head that the full-size configs take, and with sampled RoIs of another sampling ratio."""
    options = {'model.test_cfg.rcnn.score_thr': 0.0}
    if request.param == 'rois':
        options |= {'model.rpn_head.type': 'bootmae.transfer.rois.ExactRPNHead'} | {
            f'model.roi_head.{name}_roi_extractor.{key}': value
            for name in ('bbox', 'mask')
            for key, value in (('type', 'bootmae.transfer.rois.ExactRoIs'), ('roi_layer.sampling_ratio', 2))
        }
    cfg = load_config(CONFIG, options)
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(cfg.model.to_dict()))
    model.init_weights()
    for value in model.parameters():
        value.data.add_(0.05 * torch.randn_like(value))
    scenes = dict(data_root=str(tmp_path / 'scenes'), scenes=dict(train=2, val=2))
    batches = [
        pseudo_collate([dataset[0], dataset[1]])
        for dataset in (DATASETS.build(cfg[f'{loader}_dataloader'].dataset | scenes) for loader in ('train', 'val'))
    ]
    return model, *batches


def switch(monkeypatch, module) -> Counting:
    counting = Counting(module)
    for user in USERS:
        monkeypatch.setattr(sys.modules[user], 'ext_module', counting)
    return counting


def train_step(model, batch) -> tuple[dict, dict]:
    """Losses, and the gradient of each parameter."""
    torch.manual_seed(1)
    model.train()
    model.zero_grad()
    data = model.data_preprocessor(batch, training=True)
    total, losses = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    return losses, {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def predict(model, batch) -> list:
    model.eval()
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(batch)]


@needs_both
def test_same_losses_and_gradients(detector, monkeypatch):
    model, batch, _ = detector
    found = []
    for module in (COMPILED, compat._make_standin_ops()):
        counting = switch(monkeypatch, module)
        found.append(train_step(model, batch))
        assert counting.calls['nms'] >= 1
        assert counting.calls['roi_align_forward'] >= 2
        assert counting.calls['roi_align_backward'] >= 2
    (losses, gradients), (other_losses, other_gradients) = found
    assert set(losses) == set(other_losses) >= {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'}
    for name, value in losses.items():
        assert value > 0
        torch.testing.assert_close(other_losses[name], value, rtol=1e-5, atol=0)
    assert set(gradients) == set(other_gradients) == {name for name, _ in model.named_parameters()}
    for name, value in gradients.items():
        assert (other_gradients[name] - value).norm() <= 1e-5 * value.norm(), name
    assert sum(value.norm() > 0 for value in gradients.values()) > 0.9 * len(gradients)


@needs_both
def test_same_predictions(detector, monkeypatch):
    model, _, batch = detector
    found = []
    for module in (COMPILED, compat._make_standin_ops()):
        counting = switch(monkeypatch, module)
        found.append(predict(model, batch))
        assert counting.calls['nms'] >= 4, 'proposals and boxes of two images'
        assert counting.calls['roi_align_forward'] >= 2
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) > 10
        assert torch.equal(ours.labels, theirs.labels)
        assert len(set(ours.labels.tolist())) > 1
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-5, atol=1e-3)
        assert torch.equal(ours.masks, theirs.masks)
        assert 0 < ours.masks.float().mean() < 1


@needs_both
def test_the_comparison_sees_a_difference(detector, monkeypatch):
    """With bins shifted by half a pixel (``aligned``) the losses already differ."""
    model, batch, _ = detector
    switch(monkeypatch, COMPILED)
    expected = train_step(model, batch)[0]
    shifted = compat._make_standin_ops()
    for name in ('roi_align_forward', 'roi_align_backward'):
        op = getattr(shifted, name)
        monkeypatch.setattr(shifted, name, lambda *args, op=op, **kwargs: op(*args, **kwargs | dict(aligned=False)))
    switch(monkeypatch, shifted)
    assert abs(train_step(model, batch)[0]['loss_cls'] / expected['loss_cls'] - 1) > 1e-5
