# UperNet on digit scenes at toy size, from any encoder of the demo's size: untrained, BootMAE, MAE, timm.
#
#   tools/train.py configs/seg/upernet_debug.py --init work_dirs/bootmae_demo_digits/epoch_24.pth
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
# Images are normalized as for the weights of --init. The scenes are drawn into data/digit_scenes at first use.
_base_ = '../_base_/runtime_seg.py'

custom_imports = dict(imports=['bootmae.registry', 'bootmae.data.scene_datasets'], allow_failed_imports=False)
adopt_statistics = True
scenes = dict(values=(0, 1, 4, 7))  # four digits that a model can tell apart after a minute of training
crop_size, num_classes = (96, 144), 5
norm_cfg = dict(type='BN')
class_weight = [0.2] + [1.0] * 4  # with equal weights only the background is found, which is five of six pixels
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, size=crop_size, pad_val=0,
        seg_pad_val=255, test_cfg=dict(size_divisor=8)),
    backbone=dict(
        type='TransferViT', arch=dict(embed_dims=64, depth=3, num_heads=2), img_size=crop_size, patch_size=8,
        trainable_positions=True, relative_positions=True, layer_scale=1.0,
        pyramid=dict(type='SimplePyramid', out_channels=32, scales=(2, 1, 0.5))),
    decode_head=dict(
        type='UPerHead', in_channels=[32] * 3, in_index=[0, 1, 2], pool_scales=(1, 2, 3, 6), channels=32,
        dropout_ratio=0.1, num_classes=num_classes, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=class_weight)),
    auxiliary_head=dict(
        type='FCNHead', in_channels=32, in_index=1, channels=32, num_convs=1, concat_input=False, dropout_ratio=0.1,
        num_classes=num_classes, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4, class_weight=class_weight)),
    test_cfg=dict(mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='DigitSceneMasks', scenes=scenes, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitSceneMasks', scenes=scenes, split='val', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=3.0))
param_scheduler = dict(type='WarmupCosineLR', warmup=20, min_lr=1e-6, by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=220, val_interval=1000)
val_cfg, test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1000, max_keep_ckpts=1))
