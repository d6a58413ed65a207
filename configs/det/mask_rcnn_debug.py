# Mask R-CNN on digit scenes at toy size, from any encoder of the demo's size: untrained, BootMAE, MAE, timm.
#
#   tools/train.py configs/det/mask_rcnn_debug.py --init work_dirs/bootmae_demo_digits/epoch_24.pth
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
# Images are normalized as for the weights of --init. The scenes are drawn into data/digit_scenes at first use.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/runtime_det.py']

custom_imports = dict(
    imports=['bootmae.registry', 'bootmae.evaluation.metrics_det', 'bootmae.data.scene_datasets'],
    allow_failed_imports=False)
adopt_statistics = True
scenes = dict(values=(0, 1, 4, 7))  # four digits that a model can tell apart after a minute of training
img_size, num_classes, channels = (96, 144), 4, 32
strides = [4, 8, 16]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, pad_size_divisor=16),
    backbone=dict(
        _delete_=True, type='TransferViT', arch=dict(embed_dims=64, depth=3, num_heads=2), img_size=img_size,
        patch_size=8, trainable_positions=True,
        pyramid=dict(type='SimplePyramid', out_channels=channels, scales=(2, 1, 0.5))),
    neck=None,
    rpn_head=dict(
        in_channels=channels, feat_channels=channels,
        anchor_generator=dict(scales=[6], ratios=[1.0], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=32),
        bbox_head=dict(in_channels=channels, fc_out_channels=128, num_classes=num_classes, reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=32),
        mask_head=dict(num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=num_classes,
                       class_agnostic=True)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=64), mask_size=28)),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_size[::-1], keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8, num_workers=0, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='DigitSceneInstances', scenes=scenes, split='train',
                 filter_cfg=dict(filter_empty_gt=True, min_size=4), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitSceneInstances', scenes=scenes, split='val', test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoByClass', metric=['bbox', 'segm'], ann_file='data/digit_scenes/annotations/instances_val2017.json')
test_evaluator = val_evaluator

auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=3.0))
param_scheduler = dict(type='WarmupCosineLR', warmup=0.5, min_lr=1e-6, convert_to_iter_based=True)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1000)
val_cfg, test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1000, max_keep_ckpts=1))
