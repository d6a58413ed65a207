# finetune_cifar10.py for a micro model on a CPU.
_base_ = './finetune_cifar10.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depth=4, num_heads=2), drop_path_rate=0.0),
    head=dict(in_channels=64),
    train_cfg=dict(augments=None))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', crop_ratio_range=(0.4, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False,
                        dataset=dict(limit=5000, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_images = 5_000
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
param_scheduler = dict(warmup=2)
train_cfg = dict(max_epochs=10, val_interval=10)
default_hooks = dict(logger=dict(interval=39), checkpoint=dict(interval=1000, save_last=True))
