# BootMAE with a micro model on the 2,000 training scenes of configs/_base_/digit_scenes.py, without labels, for
# Mask R-CNN and UperNet on the same scenes (suites/digit_scenes.yaml, docs/evidence.md).
#
#   tools/train.py configs/pretrain/bootmae_digit_scenes.py
#
# The EMA is that of bootmae_demo.py. Hardware: one CPU core. Expected: docs/evidence.md. Run here: see there.
_base_ = ['./bootmae_demo.py', '../_base_/digit_scenes.py']

custom_imports = dict(imports=['bootmae.registry', 'bootmae.data.scene_datasets'], allow_failed_imports=False)
model = dict(backbone=dict(img_size=64), masking=dict(num_masked=48, num_block=39))  # of 8 x 8 patches
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.2, 1.0), interpolation='bicubic'),
    dict(type='DrawMask'),  # no flip: digits have a direction
    dict(type='PackInputs', algorithm_keys=['ids_shuffle']),
]
train_dataloader = dict(dataset=dict(
    _delete_=True, type='DigitSceneImages', split='train', data_root={{_base_.scenes_root}},
    scenes={{_base_.digit_scenes}}, pipeline=train_pipeline))
train_cfg = dict(max_epochs=30)
default_hooks = dict(logger=dict(interval=31))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.9995), (18, 0.9999)))]
