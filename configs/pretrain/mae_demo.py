# MAE at the size of `make demo`: the baseline to bootmae_demo.py, with the same encoder, data, batch, learning rate
# and epochs.
#
#   tools/train.py configs/pretrain/mae_demo.py
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
_base_ = './mae_debug.py'

img_size, patch_size = 48, 8
model = dict(
    backbone=dict(arch=dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=256), img_size=img_size,
                  patch_size=patch_size),
    neck=dict(num_patches=36, patch_size=patch_size, embed_dim=64),
    head=dict(patch_size=patch_size))
train_dataloader = dict(batch_size=64, dataset=dict(type='GrayPhotoCrops', size=img_size, labels_per_class=None))
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = dict(warmup=1)
train_cfg = dict(max_epochs=9)
default_hooks = dict(logger=dict(interval=24), checkpoint=dict(interval=1000, max_keep_ckpts=1, save_last=True))
