# ImageNet-1k for fine-tuning with timm's augmentation, for weights made with mean = std = 0.5 (BootMAE).
# mmpretrain's recipe; only the input statistics and the image reader differ.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

mean, std = [127.5] * 3, [127.5] * 3
data_preprocessor = dict(mean=mean, std=std)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5, hparams=dict(pad_val=[round(x) for x in mean[::-1]], interpolation='bicubic')),
    dict(type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
         fill_color=mean[::-1], fill_std=std[::-1]),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=256, num_workers=8, persistent_workers=True, drop_last=True,
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='train', labels='folder',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=256, num_workers=8, persistent_workers=True,
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='val', labels='folder',
                 pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
train_images = 1_281_167
val_evaluator = dict(type='bootmae.evaluation.by_class.AccuracyByClass')
test_evaluator = val_evaluator
val_cfg, test_cfg = dict(), dict()
