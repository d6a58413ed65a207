# MAE with a micro model on digit scenes: the baseline to bootmae_digit_scenes.py, with the same encoder, data, batch,
# learning rate and epochs.
#
#   tools/train.py configs/pretrain/mae_digit_scenes.py
#
# Hardware: one CPU core. Expected: docs/evidence.md. Run here: see there.
_base_ = ['./mae_demo.py', '../_base_/digit_scenes.py']

custom_imports = dict(imports=['bootmae.registry', 'bootmae.data.scene_datasets'], allow_failed_imports=False)
model = dict(backbone=dict(img_size=64), neck=dict(num_patches=64))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.2, 1.0), interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(
    _delete_=True, type='DigitSceneImages', split='train', data_root={{_base_.scenes_root}},
    scenes={{_base_.digit_scenes}}, pipeline=train_pipeline))
train_cfg = dict(max_epochs=30)
default_hooks = dict(logger=dict(interval=31))
