# As bootmae_small_data_finetune.py, for weights of mae_small_data.py: only the input statistics differ.
#
#   tools/train.py configs/cls/mae_small_data_finetune.py --init work_dirs/mae_small_data/epoch_400.pth
#
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_small_data_finetune.py'

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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
