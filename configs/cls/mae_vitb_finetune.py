# ImageNet-1k fine-tuning of an MAE ViT-B/16, 100 epochs: mmpretrain's recipe, on the same backbone as BootMAE.
#
#   tools/dist_train.sh configs/cls/mae_vitb_finetune.py 8 --init work_dirs/mae_vitb/epoch_800.pth
#
# Hardware: 8 GPUs x 128 = 1024. Expected (published, 800 epochs): 83.4 % top-1. Run here: NOT RUN at full size.
# Takes MAE files of this suite, of mmpretrain and of facebookresearch. Input statistics are ImageNet's.
_base_ = './bootmae_vitb_finetune.py'

mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
data_preprocessor = dict(mean=mean, std=std)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5, hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic')),
    dict(type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
         fill_color=mean[::-1], fill_std=std[::-1]),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay=0.65))
param_scheduler = dict(warmup=5, min_lr=1e-6)
custom_hooks = []  # this recipe averages no weights
