"""The full-size segmentation and detection configs: every number of their recipes, and what follows from it."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

from bootmae.results.provenance import versions

REPOSITORY = Path(__file__).resolve().parents[2]
SEG, DET = (
    {path.stem: path for path in sorted((REPOSITORY / 'configs' / task).glob('*_vit[bl]_*.py'))}
    for task in ('seg', 'det')
)
FILES = SEG | DET

HALF, IMAGENET = [127.5] * 6, [123.675, 116.28, 103.53, 58.395, 57.12, 57.375]
B = dict(arch='base', taps=(3, 5, 7, 11), width=768)
L = dict(arch='large', taps=(7, 11, 15, 23), width=1024)
ADAMW = dict(optimizer='AdamW', betas=(0.9, 0.999), wrapper='AutocastOptimWrapper', fused=True)
UPERNET = ADAMW | dict(
    img_size=512,
    patch=16,
    positions=True,
    relative=True,
    layer_scale=1.0,
    window=None,
    pyramid='TapPyramid',
    pyramid_norm='SyncBN',
    head=('UPerHead', (1, 2, 3, 6), 0.1, 150, 'SyncBN', 1.0),
    auxiliary=('FCNHead', 2, 256, 1, 0.1, 150, 'SyncBN', 0.4),
    batch=16,
    per_gpu=2,
    length=160_000,
    decay=0.05,
    warmup=(1e-6, 1500),
    test=('slide', (512, 512), (341, 341)),
    decay_positions=None,
)
ONE_X = ADAMW | dict(
    img_size=224,
    patch=16,
    positions=True,
    relative=None,
    layer_scale=None,
    window=None,
    pyramid='TapPyramid',
    pyramid_norm='SyncBN',
    batch=16,
    per_gpu=2,
    length=12,
    decay=0.05,
    drop_path=0.2,
    warmup=(0.001, 499),
    low_quality=True,
    steps=[8, 11],
    clip=None,
    pad=32,
    rpn_convs=None,
    box_head=('Shared2FCBBoxHead', None),
    mask_norm=None,
    evaluated=['bbox', 'segm'],
)
VITDET = ADAMW | dict(
    img_size=224,
    patch=16,
    positions=True,
    relative='decomposed',
    class_token=False,
    input_size=1024,
    layer_scale=None,
    window=14,
    global_blocks=None,
    taps=None,
    low_quality=False,
    decay_biases=True,
    pyramid='SimplePyramid',
    neck=None,
    batch=64,
    per_gpu=4,
    length=184_375,
    lr=1e-4,
    decay=0.1,
    warmup=(0.001, 250),
    steps=[163_889, 177_546],
    clip=None,
    pad=1024,
    rpn_convs=2,
    box_head=('Shared4Conv1FCBBoxHead', 'mmpretrain.LN2d'),
    mask_norm='mmpretrain.LN2d',
    evaluated=['bbox', 'segm'],
)
RECIPES = dict(
    bootmae_vitb_upernet=UPERNET | B | dict(lr=4e-4, layer_decay=0.65, drop_path=0.1, clip=3.0, stats=HALF),
    bootmae_vitl_upernet=UPERNET | L | dict(lr=4e-4, layer_decay=0.75, drop_path=0.1, clip=3.0, stats=HALF),
    mae_vitb_upernet=UPERNET | B | dict(lr=1e-4, layer_decay=0.65, drop_path=0.1, clip=None, stats=IMAGENET),
    mae_vitl_upernet=UPERNET | L | dict(lr=1e-4, layer_decay=0.75, drop_path=0.2, clip=None, stats=IMAGENET),
    bootmae_vitb_maskrcnn_1x=ONE_X | B | dict(lr=1.5e-4, layer_decay=0.75, stats=HALF, neck=768),
    bootmae_vitl_maskrcnn_1x=ONE_X | L | dict(lr=1e-4, layer_decay=0.85, stats=HALF, neck=1024),
    mae_vitb_maskrcnn_1x=ONE_X | B | dict(lr=1.5e-4, layer_decay=0.75, stats=IMAGENET, neck=768),
    mae_vitl_maskrcnn_1x=ONE_X | L | dict(lr=1e-4, layer_decay=0.85, stats=IMAGENET, neck=1024),
    bootmae_vitb_vitdet=VITDET | dict(arch='base', layer_decay=0.7, drop_path=0.1, stats=HALF),
    bootmae_vitl_vitdet=VITDET | dict(arch='large', layer_decay=0.8, drop_path=0.4, stats=HALF),
    mae_vitb_vitdet=VITDET | dict(arch='base', layer_decay=0.7, drop_path=0.1, stats=IMAGENET),
    mae_vitl_vitdet=VITDET | dict(arch='large', layer_decay=0.8, drop_path=0.4, stats=IMAGENET),
)


@functools.cache
def load(name: str) -> Config:
    return Config.fromfile(FILES[name])


def shared_part(cfg: Config) -> dict:
    """What both kinds of configs say; values that a config does not have are None."""
    backbone, wrapper, loader = cfg.model.backbone, cfg.optim_wrapper, cfg.train_dataloader
    stats, warmup = cfg.model.data_preprocessor, cfg.param_scheduler[0]
    assert (backbone.type, warmup.type, warmup.by_epoch, warmup.begin) == ('TransferViT', 'LinearLR', False, 0)
    assert stats.bgr_to_rgb
    return dict(
        arch=backbone.arch,
        img_size=backbone.img_size,
        patch=backbone.patch_size,
        drop_path=backbone.drop_path_rate,
        taps=backbone.get('out_indices'),
        positions=backbone.trainable_positions,
        relative=backbone.get('relative_positions'),
        class_token=backbone.get('class_token'),
        input_size=backbone.get('input_size'),
        decay_biases=wrapper.paramwise_cfg.get('decay_biases'),
        layer_scale=backbone.get('layer_scale'),
        window=backbone.get('window_size'),
        global_blocks=backbone.get('global_blocks'),
        pyramid=backbone.pyramid.type,
        pyramid_norm=backbone.pyramid.get('norm_cfg', {}).get('type'),
        wrapper=wrapper.type,
        optimizer=wrapper.optimizer.type,
        lr=wrapper.optimizer.lr,
        betas=wrapper.optimizer.betas,
        decay=wrapper.optimizer.weight_decay,
        fused=wrapper.optimizer.fused,
        layer_decay=wrapper.paramwise_cfg.layer_decay,
        decay_positions=wrapper.paramwise_cfg.get('decay_positions'),
        clip=(wrapper.get('clip_grad') or {}).get('max_norm'),
        batch=cfg.auto_scale_lr.base_batch_size,
        per_gpu=loader.batch_size,
        length=cfg.train_cfg.get('max_iters') or cfg.train_cfg.get('max_epochs'),
        warmup=(warmup.start_factor, warmup.end - 1),
        stats=list(stats.mean) + list(stats.std),
    )


def segmentation_part(cfg: Config) -> dict:
    model, head, auxiliary = cfg.model, cfg.model.decode_head, cfg.model.auxiliary_head
    assert head.in_channels == [auxiliary.in_channels] * 4
    assert (head.in_index, head.align_corners, auxiliary.align_corners) == ([0, 1, 2, 3], False, False)
    return dict(
        head=(
            head.type,
            head.pool_scales,
            head.dropout_ratio,
            head.num_classes,
            head.norm_cfg.type,
            head.loss_decode.loss_weight,
        ),
        auxiliary=(
            auxiliary.type,
            auxiliary.in_index,
            auxiliary.channels,
            auxiliary.num_convs,
            auxiliary.dropout_ratio,
            auxiliary.num_classes,
            auxiliary.norm_cfg.type,
            auxiliary.loss_decode.loss_weight,
        ),
        width=head.channels if head.channels == auxiliary.in_channels else None,
        test=(model.test_cfg.mode, model.test_cfg.crop_size, model.test_cfg.stride),
    )


def detection_part(cfg: Config) -> dict:
    model, heads = cfg.model, cfg.model.roi_head
    assert model.rpn_head.type == 'bootmae.transfer.rois.ExactRPNHead'
    for extractor in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        assert extractor.type == 'bootmae.transfer.rois.ExactRoIs'
    steps, length = cfg.param_scheduler[1], cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs
    assert (steps.type, steps.gamma, steps.begin, steps.end) == ('MultiStepLR', 0.1, 0, length)
    assert steps.by_epoch is ('max_epochs' in cfg.train_cfg)
    return dict(
        width=model.neck.in_channels[0] if model.neck else None,
        neck=model.neck and model.neck.in_channels[3],
        pad=model.data_preprocessor.pad_size_divisor,
        rpn_convs=model.rpn_head.get('num_convs'),
        steps=steps.milestones,
        box_head=(heads.bbox_head.type, heads.bbox_head.get('norm_cfg', {}).get('type')),
        low_quality=model.train_cfg.rcnn.assigner.match_low_quality,
        mask_norm=heads.mask_head.get('norm_cfg', {}).get('type'),
        evaluated=cfg.val_evaluator.metric,
    )


def test_every_config_has_its_recipe_checked():
    assert set(FILES) == set(RECIPES)
    assert (len(SEG), len(DET)) == (4, 8)


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name):
    cfg = load(name)
    said = shared_part(cfg) | (segmentation_part(cfg) if name in SEG else detection_part(cfg))
    for key, value in RECIPES[name].items():
        assert said[key] == value, key


@pytest.mark.parametrize('name', RECIPES)
def test_command(name):
    """It starts from the last checkpoint of the same method's and size's pretraining."""
    command = re.search(
        r'^#   tools/dist_train.sh (\S+) (\d+) --init work_dirs/(\w+)/epoch_(\d+)\.pth$',
        FILES[name].read_text(),
        re.MULTILINE,
    )
    method, size = name.split('_')[:2]
    assert REPOSITORY / command[1] == FILES[name]
    assert command[3] == f'{method}_{size}'
    pretraining = Config.fromfile(REPOSITORY / f'configs/pretrain/{command[3]}.py')
    assert int(command[4]) == pretraining.train_cfg.max_epochs
    cfg = load(name)
    theirs = pretraining.get('data_preprocessor') or pretraining.model.data_preprocessor
    assert list(cfg.model.data_preprocessor.mean) == list(theirs.mean)
    assert list(cfg.model.data_preprocessor.std) == list(theirs.std)


@pytest.mark.parametrize('name', RECIPES)
def test_batch(name):
    """GPUs x batch x accumulation of the opening comment is the recipe's batch."""
    stated = re.search(r'Hardware: (\d+) GPUs x (\d+)(?: x accumulation (\d+))? = (\d+)', FILES[name].read_text())
    gpus, per_gpu, accumulation, product = (int(number or 1) for number in stated.groups())
    assert gpus * per_gpu * accumulation == product == RECIPES[name]['batch']
    assert per_gpu == RECIPES[name]['per_gpu']


@pytest.mark.parametrize('name', RECIPES)
def test_length(name):
    """Passes over the data that the recipes' names speak of: 160k iterations, 12 and 100 epochs."""
    cfg = load(name)
    images = cfg.train_cfg.get('max_iters', 0) * cfg.auto_scale_lr.base_batch_size
    if 'vitdet' in name:
        assert images / 118_000 == pytest.approx(100, abs=0.01)
        assert images / cfg.train_images == pytest.approx(100.6, abs=0.1)
    elif name in SEG:
        assert images / cfg.train_images == pytest.approx(126.7, abs=0.1)
    kind = cfg.train_cfg.type.removesuffix('BasedTrainLoop')
    assert cfg.default_hooks.checkpoint.get('by_epoch', True) is (kind == 'Epoch')
    assert cfg.log_processor.by_epoch is (kind == 'Epoch')
    assert cfg.train_cfg.get('max_iters', 160_000) / cfg.default_hooks.checkpoint.interval >= 10
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 3


# Learning rate


def curve(cfg: Config, steps: int, wanted: set[int]) -> dict[int, float]:
    """Learning rate at the wanted steps, from the schedulers that count iterations."""
    peak = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer)) for scheduler in cfg.param_scheduler]
    optimizer.step()
    found = {}
    for step in range(steps):
        if step in wanted:
            found[step] = optimizer.param_groups[0]['lr']
        for scheduler in schedulers:
            scheduler.step()
    return found


@pytest.mark.parametrize('name, peak', [('bootmae_vitb_upernet', 4e-4), ('mae_vitl_upernet', 1e-4)])
def test_learning_rate_equals_the_release(name, peak):
    """mmcv's poly with warm-up, where the warm-up scales the regular rate: docs/method.md, section 6."""
    wanted = {0, 1, 750, 1499, 1500, 80_000, 159_999}
    found = curve(load(name), 160_000, wanted)
    for t in wanted:
        warmup = min(1, 1 - (1 - t / 1500) * (1 - 1e-6))
        assert found[t] == pytest.approx(peak * (1 - t / 160_000) * warmup, rel=1e-9), t


def test_learning_rate_of_vitdet():
    wanted = {0, 1, 125, 249, 250, 163_888, 163_889, 177_545, 177_546, 184_374}
    found = curve(load('bootmae_vitb_vitdet'), 184_375, wanted)
    for t in wanted:
        warmup = min(1, 0.001 + 0.999 * t / 250)
        assert found[t] == pytest.approx(1e-4 * warmup * 0.1 ** ((t >= 163_889) + (t >= 177_546)), rel=1e-9), t


# Data


def step_of(pipeline: list, kind: str) -> dict:
    """The one step of a pipeline of this type, without its type."""
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
    """Short sides of 512 times the ratio, at least 512, each also flipped; twelve images of one."""
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
    """Numbers of a ViT/16 without final norm: no key bias; positions with a class token."""
    block = 12 * width**2 + (3 - 1 + 1 + 5 + 4) * width  # qkv, proj and mlp; biases of qkv but k's, proj, mlp; norms
    return depth * block + 3 * 256 * width + width + width + (1 + patches) * width


def test_size_of_an_encoder():
    """It is timm's without the final norm and the key biases."""
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
    """Without importing bootmae first, from an empty folder, all names are found and the models build."""
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
    """When this fails, configs/_base_/runtime_seg.py can derive from mmseg's."""
    if 'mmsegmentation' in versions(['onedl-mmsegmentation']):  # mmengine knows the original's name
        pytest.skip('the original mmsegmentation is installed')
    (tmp_path / 'config.py').write_text("_base_ = 'mmseg::_base_/default_runtime.py'\n")
    with pytest.raises(ModuleNotFoundError, match='mmsegmentation is not installed'):
        Config.fromfile(tmp_path / 'config.py')
