# bootmae_small_data.py with a micro model at 64 px, minutes on a CPU: to try your images before you rent a GPU.
#
#   tools/train.py configs/pretrain/bootmae_small_data_cpu.py --data /my/images
#
# Reads at most 1,000 of the images (train_dataloader.dataset.limit). The EMA is that of bootmae_demo.py, for about a
# thousand steps: 1,000 images / 64 x 60 epochs.
# Hardware: one CPU core, batch 64. Expected: the loss falls; k-NN above an untrained encoder. Run here: in the tests.
_base_ = './bootmae_small_data.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depth=3, num_heads=2), img_size=64, patch_size=8),
    pixel_decoder=dict(embed_dims=32, depth=1, num_heads=2),
    feature_decoder=dict(depth=1, num_heads=2, tap=2),
    masking=dict(num_masked=48, num_block=39, block_area=None))  # of 8 x 8 patches
train_dataloader = dict(batch_size=64, num_workers=0, persistent_workers=False,
                        dataset=dict(limit=1000))
train_images = 1000
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3))
param_scheduler = dict(warmup=4)
train_cfg = dict(max_epochs=60)
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(interval=20),
                     probe=dict(config='configs/cls/bootmae_small_data_cpu_finetune.py', workers=0))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.9995), (34, 0.9999)))]
