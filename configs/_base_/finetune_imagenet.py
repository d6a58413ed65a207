# ImageNet-1k for fine-tuning with timm's augmentation. Random erasing runs on the device, after normalization. The
# input statistics, which also fill rotated images, depend on the method, so each config takes one of the two pipelines.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'


def augmented(pad_val):
    return [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', backend='pillow', interpolation='bicubic'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
             magnitude_std=0.5, hparams=dict(pad_val=pad_val, interpolation='bicubic')),
        dict(type='PackInputs'),
    ]


pipeline_of_half, pipeline_of_imagenet = augmented([128, 128, 128]), augmented([104, 116, 124])  # BGR
data_preprocessor = dict(type='ErasingPreprocessor', erase_prob=0.25)
train_dataloader = dict(
    batch_size=256, num_workers=8, persistent_workers=True, drop_last=True,
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='train', labels='folder'))
val_dataloader = dict(
    batch_size=256, num_workers=8, persistent_workers=True,
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='val', labels='folder',
                 pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
train_images = 1_281_167
val_evaluator = dict(type='bootmae.evaluation.by_class.AccuracyByClass')
test_evaluator = val_evaluator
val_cfg, test_cfg = dict(), dict()
