"""Predictions of a trained segmentor or detector on single images, for pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device

from ..config.classes import apply_class_names
from ..config.model import build_model
from ..data.channels import ChannelFormat
from ..data.reading import read_image
from ..data.samples import NamedSamples


@torch.no_grad()
def predict(cfg: Config, checkpoint: str | Path, indices: Sequence[int]) -> list:
    """Data samples of mmseg or mmdet, with prediction and annotation, for the given test images."""
    apply_class_names(cfg)
    model = build_model(cfg, checkpoint).to(get_device()).eval()
    dataset = NamedSamples(cfg.test_dataloader.dataset)
    return [model.test_step(pseudo_collate([dataset[index]]))[0].cpu() for index in indices]


def image_of(sample, channels: ChannelFormat | None = None) -> np.ndarray:
    """The image file of a data sample: RGB uint8 (H, W, 3), or with ``channels`` float32 (H, W, C) of 0 to 255."""
    return read_image(sample.img_path, channels)


def label_map(sample, truth: bool = False) -> np.ndarray:
    """Classes (H, W) of a segmentation sample, predicted or annotated (255: ignored)."""
    return (sample.gt_sem_seg if truth else sample.pred_sem_seg).data[0].numpy()


def instances(sample, truth: bool = False) -> dict:
    """Boxes (K, 4), labels (K,), masks (K, H, W) and scores (K,) of a detection sample; no scores for the truth."""
    found = sample.gt_instances if truth else sample.pred_instances
    boxes = found['bboxes'].tensor if hasattr(found['bboxes'], 'tensor') else found['bboxes']
    masks = found['masks'].masks if hasattr(found['masks'], 'masks') else found['masks'].numpy()
    return dict(
        boxes=boxes.numpy(),
        labels=found['labels'].numpy(),
        masks=np.asarray(masks, dtype=bool),
        scores=None if truth else found['scores'].numpy(),
    )
