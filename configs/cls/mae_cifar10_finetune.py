# bootmae_cifar10_finetune.py for weights of mae_cifar10.py, with other input statistics and trained
# absolute positions.
#
#   tools/train.py configs/cls/mae_cifar10_finetune.py --init work_dirs/mae_cifar10/epoch_200.pth
#
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/finetune_cifar10.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(trainable_positions=True))
