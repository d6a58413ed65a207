# MAE ViT-S/16 on your own images: the baseline to bootmae_small_data.py, with the same encoder, images, batch, learning
# rate and epochs.
#
#   tools/train.py configs/pretrain/mae_small_data.py --data /my/images
#
# Hardware: 1 GPU x 512. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './mae_vitb.py'

model = dict(backbone=dict(arch='deit-s'), neck=dict(embed_dim=384))  # mmpretrain's name for width 384 with 6 heads
train_dataloader = dict(batch_size=512, dataset=dict(roots='data/images', split=None))
train_images = 50_000
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 512 / 256))
param_scheduler = dict(warmup=20)
train_cfg = dict(max_epochs=400)
default_hooks = dict(
    checkpoint=dict(interval=10),
    pictures=dict(type='ReconstructionHook', interval=20),
    probe=dict(type='OnlineProbeHook', folder='', interval=20, max_images=5000, workers=4,
               config='configs/cls/mae_small_data_finetune.py'))
