# upernet_own.py with a micro model on small images, minutes on a CPU: to try your data before you rent a GPU. It takes
# encoders of configs/pretrain/bootmae_small_data_cpu.py and of the demo.
#
#   tools/train.py configs/seg/upernet_own_cpu.py --data /my/data --cfg-options classes=background,road,car
#
# Hardware: one CPU core. Expected: an mIoU above that of one class everywhere. Run here: in the tests.
_base_ = './upernet_own.py'

crop_size, norm_cfg = (96, 96), dict(type='BN')
model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(_delete_=True, size_divisor=8)),
    backbone=dict(
        _delete_=True, type='TransferViT', arch=dict(embed_dims=64, depth=3, num_heads=2), img_size=crop_size,
        patch_size=8, trainable_positions=True, relative_positions=True, layer_scale=1.0,
        pyramid=dict(type='SimplePyramid', out_channels=32, scales=(2, 1, 0.5))),
    decode_head=dict(in_channels=[32] * 3, in_index=[0, 1, 2], channels=32),
    auxiliary_head=dict(in_channels=32, in_index=1, channels=32),
    test_cfg=dict(_delete_=True, mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(384, 96), ratio_range=(1.0, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 96), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(loader, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=3e-3, fused=None), paramwise_cfg=dict(layer_decay=0.75))
param_scheduler = [dict(type='WarmupCosineLR', warmup=20, min_lr=0.0, by_epoch=False)]
train_cfg = dict(max_iters=300, val_interval=100)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=100, max_keep_ckpts=1))
