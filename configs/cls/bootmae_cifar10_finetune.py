# Fine-tuning of a ViT-Ti/4 on CIFAR-10, 100 epochs; its data and backbone also serve tools/knn.py (docs/evidence.md).
#
#   tools/train.py configs/cls/bootmae_cifar10_finetune.py --init work_dirs/bootmae_cifar10/epoch_200.pth
#
# Few labels: --cfg-options train_dataloader.dataset.labels_per_class=50 (1 %) or 500 (10 %).
# Milder than the ImageNet recipe, since an object of 32 px does not outlive small crops and erasing.
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_small_data_finetune.py'

img_size, patch_size = 32, 4
model = dict(backbone=dict(arch='tiny', img_size=img_size, patch_size=patch_size), head=dict(in_channels=192))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=img_size, crop_ratio_range=(0.4, 1.0), backend='pillow',
         interpolation='bicubic'),
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
