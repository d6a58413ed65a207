# mae_continued.py with a micro model at 64 px: the baseline to bootmae_continued_cpu.py, with the same encoder, images,
# batch, learning rates and epochs.
#
#   tools/train.py configs/pretrain/mae_continued_cpu.py --data IMAGES --init work_dirs/mae_demo
#
# Hardware: one CPU core, batch 64. Expected: the loss falls; a trial: docs/continued.md. Run here: in the tests.
_base_ = './mae_small_data_cpu.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay=0.85, separate_encoder=True))
param_scheduler = dict(warmup=2, encoder_start=2, min_lr=1e-6)
train_cfg = dict(max_epochs=30)
default_hooks = dict(probe=dict(options=dict(adopt_statistics=True)))
