# bootmae_photographs.py with a micro model at 64 px: minutes on a CPU.
#
#   tools/train.py configs/pretrain/bootmae_photographs_cpu.py
#
# Hardware: one CPU core, batch 64. Expected: docs/evidence.md. Run here: see there.
_base_ = './bootmae_small_data_cpu.py'

photographs = ['data/camvid/images/training', 'data/coco128/train2017', 'data/coco128/val2017', 'data/imagenet1000']
train_dataloader = dict(dataset=dict(roots=photographs))
train_images = 768  # 12 full batches of the 823
param_scheduler = dict(warmup=4)
train_cfg = dict(max_epochs=80)
default_hooks = dict(logger=dict(interval=12), checkpoint=dict(interval=1000, save_last=True),
                     pictures=dict(interval=1000))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.9995), (48, 0.9999)))]
