# BootMAE at toy size on handwritten digits, for tests and for trying the tools: seconds on a CPU.
#
#   tools/train.py configs/pretrain/bootmae_debug.py
#
# Hardware: one CPU core. Expected: the loss falls; nothing else. Run here: in every test run.
_base_ = ['../_base_/pretrain_digits.py', '../_base_/runtime.py']

model = dict(
    type='BootMAE',
    backbone=dict(type='PlainViT', arch=dict(embed_dims=48, depth=2, num_heads=3), img_size={{_base_.img_size}},
                  patch_size={{_base_.patch_size}}),
    pixel_decoder=dict(embed_dims=32, depth=1, num_heads=3),
    feature_decoder=dict(depth=1),
    masking=dict(num_masked=48, num_block=39))
train_pipeline = [
    dict(type='RandomResizedCrop', crop_ratio_range=(0.6, 1.0), interpolation='bicubic'),
    dict(type='DrawMask'),
    dict(type='PackInputs', algorithm_keys=['ids_shuffle']),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, labels_per_class=16))
auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor')
param_scheduler = dict(type='WarmupCosineLR', warmup=0.4, min_lr=1e-5, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.9), (1, 0.99)))]
