# bootmae_small_data_cpu_finetune.py for weights of mae_small_data_cpu.py, with other input statistics and trained
# absolute positions.
#
#   tools/train.py configs/cls/mae_small_data_cpu_finetune.py --init work_dirs/mae_small_data_cpu/epoch_60.pth
#
# Hardware: one CPU core, batch 64. Expected: above an untrained encoder. Run here: in the tests.
_base_ = '../_base_/finetune_small_data_cpu.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(trainable_positions=True))
