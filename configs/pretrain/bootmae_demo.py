# BootMAE at the size of `make demo`: photograph crops that the Python wheels carry, 32 px, minutes on a CPU core.
#
#   tools/train.py configs/pretrain/bootmae_demo.py
#
# For the digits: --cfg-options train_dataloader.dataset.type=DigitImages
# The paper's schedules are kept as shares of the run, the EMA horizons 1 / (1 - decay) as shares of its steps.
_base_ = './bootmae_debug.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=96, depth=4, num_heads=3)),
    pixel_decoder=dict(embed_dims=64, depth=2, num_heads=3),
    feature_decoder=dict(depth=2))
train_dataloader = dict(
    batch_size=128, dataset=dict(type='PhotoCrops', labels_per_class=None))
auto_scale_lr = dict(base_batch_size=128)
max_epochs = 12
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='WarmupCosineLR', warmup=1, end=max_epochs, min_lr=1e-5, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_epochs))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.98), (3, 0.99), (8, 0.999)))]
