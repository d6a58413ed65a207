# mae_cifar10.py with an encoder of 12 blocks of width 64 on all 50,000 images: the baseline to
# bootmae_cifar10_12x64.py, with the same encoder, images, batch, learning rate and epochs, and as many decoder blocks.
#
#   tools/train.py configs/pretrain/mae_cifar10_12x64.py
#
# Hardware: one CPU core, batch 128. Expected: docs/evidence.md. Run here: see there.
_base_ = './mae_cifar10.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, num_layers=12, num_heads=2, feedforward_channels=256)),
    neck=dict(embed_dim=64, decoder_embed_dim=48, decoder_num_heads=3))
train_dataloader = dict(batch_size=128, num_workers=0, persistent_workers=False)
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
param_scheduler = dict(warmup=2)
train_cfg = dict(max_epochs=40)
default_hooks = dict(
    logger=dict(interval=39), checkpoint=dict(interval=5, max_keep_ckpts=-1), pictures=dict(interval=1000),
    probe=dict(config='configs/cls/mae_cifar10_12x64_finetune.py', interval=1, workers=0))
