# bootmae_cifar10.py with a micro model on a tenth of the images: minutes on a CPU.
#
#   tools/train.py configs/pretrain/bootmae_cifar10_cpu.py
#
# Reads 5,000 of the images, spread over the classes. The EMA is that of bootmae_demo.py, because a short run needs a
# slow one.
# Hardware: one CPU core, batch 64. Expected: docs/evidence.md. Run here: see there.
_base_ = './bootmae_cifar10.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depth=4, num_heads=2)),
    pixel_decoder=dict(embed_dims=32, depth=1, num_heads=2),
    feature_decoder=dict(depth=1, num_heads=2, tap=3))
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False, dataset=dict(limit=5000))
train_images = 5_000
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=4e-3))
param_scheduler = dict(warmup=1)
train_cfg = dict(max_epochs=20)
default_hooks = dict(
    logger=dict(interval=39), checkpoint=dict(interval=1000, save_last=True), pictures=dict(interval=1000),
    probe=dict(config='configs/cls/bootmae_cifar10_cpu_finetune.py', interval=5, max_images=1000, workers=0))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.9995), (12, 0.9999)))]
