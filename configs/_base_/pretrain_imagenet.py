# Shared by the pretraining of BootMAE and MAE on ImageNet-1k: bicubic random resized crop (0.2, 1) and flip, AdamW at
# 1.5e-4 per 256 images, batch 4096. Labels are not read.
# For other images: --data FOLDER ...
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs512_mae.py'

train_pipeline = [  # crops have the model's img_size
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=512,
    drop_last=True,
    collate_fn=dict(_delete_=True, type='default_collate'),
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='train', labels=None,
                 pipeline=train_pipeline))
train_images = 1_281_167  # for tools/plan.py if the images are missing
auto_scale_lr = dict(base_batch_size=4096)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor')
