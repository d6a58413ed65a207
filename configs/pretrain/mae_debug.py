# MAE at toy size on handwritten digits: the baseline to bootmae_debug.py, seconds on a CPU.
#
#   tools/train.py configs/pretrain/mae_debug.py
#
# Hardware: one CPU core. Expected: the loss falls; nothing else. Run here: in every test run.
_base_ = ['mmpretrain::_base_/models/mae_vit-base-p16.py', '../_base_/pretrain_digits.py', '../_base_/runtime.py']

img_size, patch_size = {{_base_.img_size}}, {{_base_.patch_size}}
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=192),
        img_size=img_size,
        patch_size=patch_size),
    neck=dict(num_patches=64, patch_size=patch_size, embed_dim=48, decoder_embed_dim=32, decoder_depth=2,
              decoder_num_heads=4),
    head=dict(patch_size=patch_size))
train_dataloader = dict(dataset=dict(labels_per_class=16))
auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(decay_class_token=True))
param_scheduler = dict(type='WarmupCosineLR', warmup=0.4, min_lr=0.0, endpoint=False, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
