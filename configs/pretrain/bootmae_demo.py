# BootMAE at the size of `make demo`: 48-px gray crops of photographs from installed Python packages, about a minute.
#
#   tools/train.py configs/pretrain/bootmae_demo.py
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
# The EMA is slow for a run of 650 steps. With the share of the paper (a horizon of 0.4 % of the steps) the momentum
# features collapse within 50 steps and recover, but k-NN accuracy stays lower (docs/watching.md).
_base_ = './bootmae_debug.py'

img_size = 48
model = dict(
    backbone=dict(arch=dict(embed_dims=64, depth=3, num_heads=2), img_size=img_size, patch_size=8),
    pixel_decoder=dict(num_heads=2),
    feature_decoder=dict(num_heads=2, tap=2),
    masking=dict(num_masked=27, num_block=22))
train_dataloader = dict(batch_size=64, dataset=dict(type='GrayPhotoCrops', size=img_size, labels_per_class=None))
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = dict(warmup=1)
train_cfg = dict(max_epochs=9)
default_hooks = dict(logger=dict(interval=24), checkpoint=dict(interval=1000, max_keep_ckpts=1, save_last=True))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.9995), (5, 0.9999)))]
