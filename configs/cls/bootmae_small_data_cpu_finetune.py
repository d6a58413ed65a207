# bootmae_small_data_finetune.py for the micro model of bootmae_small_data_cpu.py: minutes on a CPU.
#
#   tools/train.py configs/cls/bootmae_small_data_cpu_finetune.py --init work_dirs/bootmae_small_data_cpu/epoch_60.pth
#
# Only crops and flips, no mixing of images, because so small a model underfits.
# Hardware: one CPU core, batch 64. Expected: above an untrained encoder. Run here: in the tests.
_base_ = '../_base_/finetune_small_data_cpu.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
