"""The full-size segmentation and detection configs: every number of their recipes."""

import re

import pytest
import torch
from downstream_files import DET, FILES, REPOSITORY, SEG, load
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

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


def shared_part(cfg: Config) -> dict:
    """The values that both kinds of configs have; missing ones are None."""
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
    """It starts from the last pretraining checkpoint of the same method and size."""
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
    """GPUs x batch x accumulation in the opening comment equals the recipe's batch."""
    stated = re.search(r'Hardware: (\d+) GPUs x (\d+)(?: x accumulation (\d+))? = (\d+)', FILES[name].read_text())
    gpus, per_gpu, accumulation, product = (int(number or 1) for number in stated.groups())
    assert gpus * per_gpu * accumulation == product == RECIPES[name]['batch']
    assert per_gpu == RECIPES[name]['per_gpu']


@pytest.mark.parametrize('name', RECIPES)
def test_length(name):
    """Lengths of the recipes: 160k iterations, 12 and 100 epochs."""
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
