# mae_small_data.py with a micro model at 64 px: the baseline to bootmae_small_data_cpu.py, with the same encoder,
# images, batch, learning rate and epochs.
#
#   tools/train.py configs/pretrain/mae_small_data_cpu.py --data /my/images
#
# Hardware: one CPU core, batch 64. Expected: the loss falls; k-NN above an untrained encoder. Run here: in the tests.
_base_ = './mae_small_data.py'

patch_size = 8
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=256),
        img_size=64,
        patch_size=patch_size),
    neck=dict(num_patches=64, patch_size=patch_size, embed_dim=64, decoder_embed_dim=32, decoder_depth=2,
              decoder_num_heads=4),
    head=dict(patch_size=patch_size))
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False,
                        dataset=dict(limit=1000))
train_images = 1000
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
param_scheduler = dict(warmup=4)
train_cfg = dict(max_epochs=60)
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(interval=20),
                     probe=dict(config='configs/cls/mae_small_data_cpu_finetune.py', workers=0))
