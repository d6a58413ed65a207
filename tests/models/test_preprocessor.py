"""Data preprocessors: no waiting in pretraining, and random erasing as in timm for fine-tuning."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from timm.data.random_erasing import RandomErasing
from torch.utils._python_dispatch import TorchDispatchMode

CONFIGS = Path(__file__).parents[2] / 'configs'
MEAN, STD = [127.5, 100.0, 90.0], [127.5, 50.0, 60.0]


def build(**settings):
    return MODELS.build(dict(type='ErasingPreprocessor', mean=MEAN, std=STD, to_rgb=True, num_classes=3) | settings)


def batch(images):
    return dict(inputs=images.clone(), data_samples=[DataSample().set_gt_label(i % 3) for i in range(len(images))])


def seed(value):
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8))


def normalized(images):
    return (images.flip(1).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_it_erases_as_timm_does(images):
    """The result equals that of timm's class on normalized images."""
    seed(3)
    ours = build(erase_prob=0.5)(batch(images), training=True)['inputs']
    theirs = normalized(images)
    seed(3)
    RandomErasing(0.5, mode='pixel', device='cpu')(theirs)
    assert torch.equal(ours, theirs)
    erased = (ours != normalized(images)).flatten(1).any(dim=1)
    assert 10 < erased.sum() < 30
    noise = ours[ours != normalized(images)]
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05), 'clipped to 0..255 it would be 0.7 in the first channel'
    assert noise.abs().max() > 3


@pytest.mark.parametrize('settings, training', [(dict(erase_prob=0.0), True), (dict(erase_prob=1.0), False)])
def test_when_nothing_is_erased(images, settings, training):
    assert torch.equal(build(**settings)(batch(images), training=training)['inputs'], normalized(images))


def test_mixing_comes_after_it(images):
    mix = dict(batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8)]))
    seed(4)
    out = build(erase_prob=1.0, **mix)(batch(images), training=True)
    seed(4)
    mixed = normalized(images)
    RandomErasing(1.0, mode='pixel', device='cpu')(mixed)
    scores = torch.eye(3)[torch.arange(40) % 3]
    np.random.choice(1)
    mixed, scores = build(erase_prob=0.0, **mix).mixing.augments[0](mixed, scores)
    assert torch.equal(out['inputs'], mixed)
    assert torch.equal(torch.stack([sample.gt_score for sample in out['data_samples']]), scores)


@pytest.mark.parametrize('method, mean', [('bootmae', 127.5), ('mae', 123.675)])
def test_the_recipes_use_it(method, mean):
    cfg = Config.fromfile(CONFIGS / f'cls/{method}_vitb_finetune.py')
    assert (cfg.data_preprocessor.type, cfg.data_preprocessor.erase_prob) == ('ErasingPreprocessor', 0.25)
    assert cfg.data_preprocessor.mean[0] == mean
    names = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert names == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'RandAugment', 'PackInputs']
    pad = cfg.train_dataloader.dataset.pipeline[3].hparams.pad_val
    assert pad == [round(x) for x in cfg.data_preprocessor.mean[::-1]]


def test_statistics_of_many_channels_are_floats():
    """Also if the first of them is written as an integer."""
    model = MODELS.build(dict(type='PretrainPreprocessor', mean=[0, 103.5, 90.2, 12.7], std=[1, 0.5, 0.25, 0.1]))
    assert model.mean.flatten().tolist() == pytest.approx([0, 103.5, 90.2, 12.7])
    assert model.std.flatten().tolist() == pytest.approx([1, 0.5, 0.25, 0.1])


def test_samples_stay_where_they_are():
    """Images are normalized as in mmpretrain's preprocessor, and samples are not copied."""
    settings = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 5.0], to_rgb=True)
    images, samples = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8), [DataSample(), DataSample()]
    ours, theirs = (
        MODELS.build(dict(settings, type=kind))(dict(inputs=images, data_samples=samples), True)
        for kind in ('PretrainPreprocessor', 'SelfSupDataPreprocessor')
    )
    assert torch.equal(ours['inputs'], theirs['inputs'])
    assert all(a is b for a, b in zip(ours['data_samples'], samples, strict=True))
    assert not any(a is b for a, b in zip(theirs['data_samples'], samples, strict=True))


@pytest.mark.parametrize('kind', ['PretrainPreprocessor', 'SelfSupDataPreprocessor'])
def test_channels_are_not_indexed_with_a_list(kind):
    """Indexing with a list copies the list to the GPU and waits for it, as in mmpretrain's preprocessor."""

    class Indexing(TorchDispatchMode):
        used = False

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.used |= operator is torch.ops.aten.index.Tensor
            return operator(*args, **(kwargs or {}))

    model = MODELS.build(dict(type=kind, mean=[10.0] * 3, std=[2.0] * 3, to_rgb=True))
    with Indexing() as indexing:
        model(dict(inputs=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), data_samples=[DataSample(), DataSample()]), True)
    assert indexing.used == (kind != 'PretrainPreprocessor')
