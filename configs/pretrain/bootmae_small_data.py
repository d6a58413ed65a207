# BootMAE ViT-S/16 on your own images (ten thousand to a million), one GPU.
#
#   tools/train.py configs/pretrain/bootmae_small_data.py --data /my/images
#
# Images need no labels, and folders may be nested. The paper's schedules are kept as shares of the run, and the EMA
# horizons (1 / (1 - decay), in steps) as shares of its steps: 0.4 %, 4 % and 40 %. The EMA points below are for about
# 40,000 steps, e.g. 50,000 images for 400 epochs at batch 512.
# Hardware: 1 GPU x 512. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_vitb.py'

model = dict(
    backbone=dict(arch='small'),
    pixel_decoder=dict(embed_dims=256, num_heads=6),
    feature_decoder=dict(num_heads=6))
train_dataloader = dict(batch_size=512, dataset=dict(roots='data/images', split=None))
train_images = 50_000
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 512 / 256))
param_scheduler = dict(warmup=20, min_lr=1e-5)
train_cfg = dict(max_epochs=400)
default_hooks = dict(
    checkpoint=dict(interval=10),
    pictures=dict(type='ReconstructionHook', interval=20),  # docs/watching.md
    # k-NN during training, with default_hooks.probe.folder=/my/labeled (one folder per class)
    probe=dict(type='OnlineProbeHook', folder='', interval=20, max_images=5000, workers=4,
               config='configs/cls/bootmae_small_data_finetune.py'))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.994), (50, 0.9994), (200, 0.99994)), ramp=0.25)]
