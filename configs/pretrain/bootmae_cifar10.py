# BootMAE ViT-Ti/4 on CIFAR-10 (50,000 images of 32 px), 200 epochs: a comparison with MAE that a lab can repeat with
# several seeds (suites/cifar10.yaml, docs/evidence.md).
#
#   tools/train.py configs/pretrain/bootmae_cifar10.py
#
# Data: data/cifar10/{train,val}/<class>/* (source: docs/evidence.md). Labels are not read.
# The paper's schedules are kept as shares of the run, which has 19,400 steps (97 per epoch): a warm-up of 5 % of the
# epochs, a ramp of the feature weight of 25 %, and EMA horizons (1 / (1 - decay), in steps) of 0.4 %, 4 % and 40 % of
# the steps at the start, after 12.5 % and after 50 % of the epochs. Learning rate: see docs/evidence.md.
# Hardware: 1 GPU x 512. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_small_data.py'

model = dict(
    backbone=dict(arch='tiny', img_size=32, patch_size=4),
    pixel_decoder=dict(embed_dims=128, num_heads=3),
    feature_decoder=dict(num_heads=3),
    masking=dict(num_masked=48, num_block=39, block_area=None))  # of 8 x 8 patches
train_dataloader = dict(num_workers=12, dataset=dict(roots='data/cifar10/train'))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = dict(warmup=10)
train_cfg = dict(max_epochs=200)
default_hooks = dict(probe=dict(  # on training images only
    folder='data/cifar10/train', config='configs/cls/bootmae_cifar10_finetune.py', interval=10))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.98716), (25, 0.998716), (100, 0.9998716)), ramp=0.25)]
