# finetune_small_data.py for a micro model on a CPU.
_base_ = './finetune_small_data.py'

img_size, patch_size = 64, 8
data_preprocessor = dict(erase_prob=0.0)
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depth=3, num_heads=2), img_size=img_size,
                  patch_size=patch_size, drop_path_rate=0.0),
    head=dict(in_channels=64),
    train_cfg=dict(augments=None))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.4, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=72, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=img_size),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False,
                        dataset=dict(limit=1000, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(limit=500, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_images = 1000
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
param_scheduler = dict(warmup=3)
train_cfg = dict(max_epochs=20, val_interval=5)
default_hooks = dict(logger=dict(interval=15))
