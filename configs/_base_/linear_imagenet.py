# ImageNet-1k for linear probing: flip and bicubic random resized crop, drawn once and clamped as in
# facebookresearch/mae.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ClampedResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=1024, num_workers=8, persistent_workers=True, drop_last=True,
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='train', labels='folder',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=512, num_workers=8, persistent_workers=True,
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='val', labels='folder',
                 pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
train_images = 1_281_167
val_evaluator = dict(type='bootmae.evaluation.by_class.AccuracyByClass')
test_evaluator = val_evaluator
val_cfg, test_cfg = dict(), dict()
