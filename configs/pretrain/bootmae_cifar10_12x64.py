# bootmae_cifar10.py with an encoder of 12 blocks of width 64 on all 50,000 images: hours on one CPU core.
#
#   tools/train.py configs/pretrain/bootmae_cifar10_12x64.py
#
# As deep as a ViT-Ti/4 and a ninth of its parameters. The EMA horizon, 1 / (1 - decay), is 1,000 steps at any length of
# the run; shorter ones lose at this size (docs/evidence.md).
# Hardware: one CPU core, batch 128. Expected: docs/evidence.md. Run here: see there.
_base_ = './bootmae_cifar10.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depth=12, num_heads=2)),
    pixel_decoder=dict(embed_dims=48, num_heads=3),
    feature_decoder=dict(num_heads=2))
train_dataloader = dict(batch_size=128, num_workers=0, persistent_workers=False)
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
param_scheduler = dict(warmup=2)
train_cfg = dict(max_epochs=40)
default_hooks = dict(
    logger=dict(interval=39), checkpoint=dict(interval=5, max_keep_ckpts=-1), pictures=dict(interval=1000),
    probe=dict(config='configs/cls/bootmae_cifar10_12x64_finetune.py', interval=1, workers=0))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.999), ))]
