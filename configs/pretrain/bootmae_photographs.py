# BootMAE ViT-S/16 on a few hundred photographs: pretraining on the images of the task itself and more of their kind,
# without labels (suites/camvid.yaml, docs/evidence.md).
#
#   tools/train.py configs/pretrain/bootmae_photographs.py
#
# Data: data/camvid/images/training, data/coco128/train2017 and val2017, data/imagenet1000: 823 photographs (sources:
# docs/evidence.md). An epoch has 12 steps of 64 images and the run 9,600 steps. The schedules have the same shares of
# the run as in bootmae_small_data.py.
# Hardware: 1 GPU x 64. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_small_data.py'

photographs = ['data/camvid/images/training', 'data/coco128/train2017', 'data/coco128/val2017', 'data/imagenet1000']
train_dataloader = dict(batch_size=64, dataset=dict(roots=photographs))
train_images = 768  # 12 full batches of the 823
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
param_scheduler = dict(warmup=40)
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=100), pictures=dict(interval=100))
custom_hooks = [dict(type='BootMAEHook', ema=((0, 0.974), (100, 0.9974), (400, 0.99974)), ramp=0.25)]
