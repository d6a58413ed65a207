"""The full-size segmentation and detection configs: data, sizes of models, imports."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import timm
import torch
from downstream_files import DET, FILES, SEG, load
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from bootmae.results.provenance import versions

# Data


def step_of(pipeline: list, kind: str) -> dict:
    """The only step of this type in a pipeline, without its type."""
    found = [step for step in pipeline if step['type'] == kind]
    assert len(found) == 1, kind
    return {key: value for key, value in found[0].items() if key != 'type'}


@pytest.mark.parametrize('name', SEG)
def test_segmentation_data(name):
    cfg = load(name)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert [step['type'] for step in train.pipeline] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'RandomResize',
        'RandomCrop',
        'RandomFlip',
        'PhotoMetricDistortion',
        'PackSegInputs',
    ]
    assert step_of(train.pipeline, 'RandomResize') == dict(scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
    assert step_of(train.pipeline, 'RandomCrop') == dict(crop_size=(512, 512), cat_max_ratio=0.75)
    assert step_of(train.pipeline, 'RandomFlip') == dict(prob=0.5)
    assert step_of(val.pipeline, 'Resize') == dict(scale=(2048, 512), keep_ratio=True)
    padding = cfg.model.data_preprocessor
    assert (padding.size, padding.test_cfg, padding.pad_val, padding.seg_pad_val) == (
        (512, 512),
        dict(size=(512, 512)),
        0,
        255,
    )
    for dataset, split in ((train, 'training'), (val, 'validation')):
        assert (dataset.type, dataset.data_root) == ('ADE20KDataset', 'data/ade/ADEChallengeData2016')
        assert dataset.data_prefix == dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
    assert cfg.val_evaluator == dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU'])
    assert cfg.test_dataloader == cfg.val_dataloader


@pytest.mark.parametrize('name', [name for name in DET if 'bootmae_vitb' in name])
def test_detection_data(name):
    cfg = load(name)
    train, test = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline
    if 'vitdet' in name:
        order = [step['type'] for step in train]
        assert order.index('RandomFlip') < order.index('RandomResize') < order.index('RandomCrop')
        assert step_of(train, 'RandomResize') == dict(scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True)
        crop = step_of(train, 'RandomCrop')
        assert (crop['crop_type'], crop['crop_size']) == ('absolute_range', (1024, 1024))
        assert step_of(test, 'Resize') == dict(scale=(1024, 1024), keep_ratio=True)
        assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    else:
        scales = step_of(train, 'RandomChoiceResize')['scales']
        assert scales == [(1333, short) for short in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
        assert step_of(test, 'Resize') == dict(scale=(1333, 800), keep_ratio=True)
    assert step_of(train, 'RandomFlip') == dict(prob=0.5)
    assert step_of(train, 'LoadAnnotations') == dict(with_bbox=True, with_mask=True)
    assert (
        cfg.train_dataloader.dataset.data_root + cfg.train_dataloader.dataset.ann_file
        == 'data/coco/annotations/instances_train2017.json'
    )
    assert cfg.val_evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'
    assert cfg.train_dataloader.dataset.data_prefix.img == 'train2017/'


def test_multi_scale_images(tmp_path):
    """Short sides of 512 times the ratio, at least 512, each also flipped: twelve images."""
    init_default_scope('mmseg')
    path, labels = str(tmp_path / 'image.png'), str(tmp_path / 'labels.png')
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(path, image)
    cv2.imwrite(labels, image[..., 0] % 151)
    pipeline = Compose(load('bootmae_vitb_upernet').tta_pipeline)
    packed = pipeline(dict(img_path=path, seg_map_path=labels, reduce_zero_label=True, label_map=None, seg_fields=[]))
    sizes = [(tuple(x.shape[1:]), bool(sample.flip)) for x, sample in zip(packed['inputs'], packed['data_samples'])]
    expected = [(512, 768)] * 3 + [(640, 960), (768, 1152), (896, 1344)]
    assert sorted(sizes) == sorted((size, flip) for size in expected for flip in (False, True))
    plain, flipped = packed['inputs'][0], packed['inputs'][1]
    assert torch.equal(plain.flip(2), flipped)


# Models


def encoder_size(width: int, depth: int, patches: int) -> int:
    """Number of parameters of a ViT/16 without final norm and key bias, positions included."""
    block = 12 * width**2 + (3 - 1 + 1 + 5 + 4) * width  # qkv, proj and mlp; biases of qkv but k's, proj, mlp; norms
    return depth * block + 3 * 256 * width + width + width + (1 + patches) * width


def test_size_of_an_encoder():
    """It equals timm's without the final norm and the key biases."""
    theirs = timm.create_model('vit_base_patch16_224', num_classes=0, device='meta')
    keys = 12 * 768
    assert encoder_size(768, 12, 196) == sum(p.numel() for p in theirs.parameters()) - 2 * 768 - keys


@pytest.mark.parametrize(
    'name, total, patches, more',
    [
        # relative positions (63 * 63 + 3 a head), two layer scales; pyramid: three 2 x 2 transposed convolutions, norm
        ('bootmae_vitb_upernet', 163_868_012, 1024, 12 * (3972 * 12 + 2 * 768) + 3 * (4 * 768**2 + 768) + 2 * 768),
        ('bootmae_vitb_maskrcnn_1x', 113_561_328, 196, 3 * (4 * 768**2 + 768) + 2 * 768),
        # x4, x2: 768 -> 384 with a norm -> 192, 768 -> 384; each level 1 x 1 to 256, 3 x 3, a norm after each
        (
            'bootmae_vitb_vitdet',
            110_794_672 + 92_672 - 768,
            196,  # offsets of 14 and of 64 patches; no class token
            8 * 2 * 27 * 64
            + 4 * 2 * 127 * 64
            - 768
            + 2 * (4 * 768 * 384 + 384)
            + 2 * 384
            + 4 * 384 * 192
            + 192
            + 256 * (192 + 384 + 768 + 768)
            + 4 * 9 * 256**2
            + 4 * 2 * 2 * 256,
        ),
    ],
)
def test_number_of_parameters(name, total, patches, more):
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.backbone.parameters()) == encoder_size(768, 12, patches) + more
    assert sum(p.numel() for p in model.parameters()) == total
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_configs_bring_their_imports(tmp_path):
    """All names are registered and models build from an empty folder, without importing bootmae first."""
    code = f"""
import torch
from mmengine.config import Config
from mmengine.registry import (DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS,
                               PARAM_SCHEDULERS, TRANSFORMS, VISUALIZERS, init_default_scope)
for path in {[str(FILES[name]) for name in FILES if 'bootmae_vitb' in name or 'mae_vitl' in name]!r}:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    if cfg.model.backbone.arch == 'base':  # the others differ in numbers alone
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
        assert type(model.backbone).__module__ == 'bootmae.transfer.backbone', path
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for step in loader.dataset.pipeline:
            TRANSFORMS.build(step)
    wanted = [(DATASETS, cfg.train_dataloader.dataset), (METRICS, cfg.val_evaluator), (VISUALIZERS, cfg.visualizer)]
    wanted += [(HOOKS, hook) for hook in cfg.default_hooks.values()]
    wanted += [(PARAM_SCHEDULERS, scheduler) for scheduler in cfg.param_scheduler]
    wanted += [(OPTIM_WRAPPERS, cfg.optim_wrapper),
               (OPTIM_WRAPPER_CONSTRUCTORS, dict(type=cfg.optim_wrapper.constructor))]
    for registry, settings in wanted:
        with registry.switch_scope_and_registry(cfg.default_scope) as registry:
            assert registry.get(settings['type']), (path, settings)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bases_of_mmseg_still_do_not_resolve(tmp_path):
    """When this fails, configs/_base_/runtime_seg.py can inherit from mmseg's."""
    if 'mmsegmentation' in versions(['onedl-mmsegmentation']):  # mmengine knows the original's name
        pytest.skip('the original mmsegmentation is installed')
    (tmp_path / 'config.py').write_text("_base_ = 'mmseg::_base_/default_runtime.py'\n")
    with pytest.raises(ModuleNotFoundError, match='mmsegmentation is not installed'):
        Config.fromfile(tmp_path / 'config.py')
