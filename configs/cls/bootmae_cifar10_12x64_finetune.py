# bootmae_cifar10_cpu_finetune.py for the encoder of bootmae_cifar10_12x64.py, on all 50,000 training images.
#
#   tools/train.py configs/cls/bootmae_cifar10_12x64_finetune.py --init work_dirs/bootmae_cifar10_12x64/epoch_40.pth
#
# Hardware: one CPU core, batch 128. Expected: docs/evidence.md. Run here: see there.
_base_ = './bootmae_cifar10_cpu_finetune.py'

model = dict(backbone=dict(arch=dict(depth=12)))
train_dataloader = dict(batch_size=128, dataset=dict(limit=None))
train_images = 50_000
auto_scale_lr = dict(base_batch_size=128)
train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = dict(warmup=1)
