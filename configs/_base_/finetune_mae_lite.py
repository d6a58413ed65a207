# MAE-Lite's transfer recipe for its ViT-Ti/16, which has 12 heads instead of 3 (docs/mae_lite.md): 50 epochs of SGD,
# crops and flips only.
_base_ = ['./finetune_imagenet.py', './runtime.py']

img_size, num_classes = 224, 100
data_preprocessor = dict(_delete_=True, type='ClsDataPreprocessor', num_classes=num_classes, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PlainViT', arch=dict(embed_dims=192, depth=12, num_heads=12), img_size=img_size, patch_size=16,
                  out_type='avg_featmap', trainable_positions=True),
    head=dict(
        type='LinearClsHead',
        num_classes=num_classes,
        in_channels=192,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02 * 0.001)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.08, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=512, dataset=dict(roots='data/cifar100', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(roots='data/cifar100'))
test_dataloader = val_dataloader
train_images = 50_000
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=1.0))
param_scheduler = dict(type='WarmupCosineLR', warmup=10, min_lr=1e-6, endpoint=False, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=50, val_interval=10)
