# bootmae_cifar10_finetune.py for the micro model of bootmae_cifar10_cpu.py: a minute or two on a CPU.
#
#   tools/train.py configs/cls/bootmae_cifar10_cpu_finetune.py --init work_dirs/bootmae_cifar10_cpu/epoch_20.pth
#
# At most 5,000 of the training images, and all test images. Only crops and flips, no mixing of images, because so small
# a model underfits.
# Hardware: one CPU core, batch 64. Expected: docs/evidence.md. Run here: see there.
_base_ = '../_base_/finetune_cifar10_cpu.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
