# mae_cifar10.py with a micro model on a tenth of the images: the baseline to bootmae_cifar10_cpu.py, with the same
# encoder, images, batch, learning rate and epochs.
#
#   tools/train.py configs/pretrain/mae_cifar10_cpu.py
#
# Hardware: one CPU core, batch 64. Expected: docs/evidence.md. Run here: see there.
_base_ = './mae_cifar10.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=2, feedforward_channels=256)),
    neck=dict(embed_dim=64, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4))
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False, dataset=dict(limit=5000))
train_images = 5_000
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=4e-3))
param_scheduler = dict(warmup=1)
train_cfg = dict(max_epochs=20)
default_hooks = dict(
    logger=dict(interval=39), checkpoint=dict(interval=1000, save_last=True), pictures=dict(interval=1000),
    probe=dict(config='configs/cls/mae_cifar10_cpu_finetune.py', interval=5, max_images=1000, workers=0))
