# Shared by the linear probing of BootMAE's and MAE's ViT-B/16 on ImageNet-1k: LARS, 90 epochs.
_base_ = ['./linear_imagenet.py', './runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='PlainViT', arch='base', img_size=224, patch_size=16, frozen=True),
    neck=dict(type='ClsBatchNormNeck', input_features=768),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01)))

auto_scale_lr = dict(base_batch_size=16384)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.0, eta=0.001),
    paramwise_cfg=dict(custom_keys={'bias': dict(decay_mult=0.0, lars_exclude=True)}))  # plain SGD for 1-D parameters
param_scheduler = dict(type='WarmupCosineLR', warmup=10, min_lr=0.0, endpoint=False, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=90)
