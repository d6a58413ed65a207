# CIFAR-10, for weights of either method: milder augmentation than on ImageNet.
_base_ = './finetune_small_data.py'

data_preprocessor = dict(erase_prob=0.0)
model = dict(backbone=dict(arch='tiny', img_size=32, patch_size=4), head=dict(in_channels=192))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.4, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5, hparams=dict(pad_val=[128, 128, 128], interpolation='bicubic')),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(roots='data/cifar10', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(roots='data/cifar10', pipeline=test_pipeline))
test_dataloader = val_dataloader
train_images = 50_000
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(val_interval=100)
