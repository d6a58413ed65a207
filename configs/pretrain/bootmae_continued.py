# BootMAE ViT-B/16 on your own images (a few thousand and more) that starts from given weights (docs/continued.md).
#
#   tools/train.py configs/pretrain/bootmae_continued.py --data /my/images --init timm:vit_base_patch16_224.mae
#
# --init takes any encoder of this size. Images are normalized as its weights need it. Short, at half of the learning
# rate of bootmae_small_data.py, lower in lower blocks. The decoders train alone for 5 epochs, then the encoder warms
# up. The momentum encoder is a good target from the first step, so the feature loss has its full weight early, and the
# EMA horizons, 1,000 to 10,000 steps, do not shrink with the run: a target that moves fast collapses.
# Hardware: 1 GPU x 256 x accumulation 2 = 512. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_small_data.py'

model = dict(
    backbone=dict(arch='base'),
    pixel_decoder=dict(embed_dims=512, num_heads=12),
    feature_decoder=dict(num_heads=12))
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(
    optimizer=dict(lr=0.75e-4 * 512 / 256),
    paramwise_cfg=dict(layer_decay=0.85, separate_encoder=True))
param_scheduler = dict(warmup=5, encoder_start=5, min_lr=1e-6)
train_cfg = dict(max_epochs=100)
default_hooks = dict(probe=dict(options=dict(
    adopt_statistics=True, model=dict(backbone=dict(arch='base'), head=dict(in_channels=768)))))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.999), (100, 0.9999)), ramp=0.05)]
