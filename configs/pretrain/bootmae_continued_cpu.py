# bootmae_continued.py with a micro model at 64 px: minutes on a CPU.
#
#   tools/train.py configs/pretrain/bootmae_continued_cpu.py --data IMAGES --init work_dirs/bootmae_demo
#
# Starts from any encoder of 3 blocks of width 64 with patches of 8 px, such as bootmae_demo.py.
# Hardware: one CPU core, batch 64. Expected: the loss falls; a trial: docs/continued.md. Run here: in the tests.
_base_ = './bootmae_small_data_cpu.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay=0.85, separate_encoder=True))
param_scheduler = dict(warmup=2, encoder_start=2, min_lr=1e-6)
train_cfg = dict(max_epochs=30)
default_hooks = dict(probe=dict(options=dict(adopt_statistics=True)))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.999), (30, 0.9999)), ramp=0.05)]
