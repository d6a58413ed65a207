# Fine-tuning at toy size on handwritten digits, from bootmae_debug.py. For tests, and to try the tools.
#
#   tools/train.py configs/cls/bootmae_debug_finetune.py --init work_dirs/bootmae_debug/epoch_2.pth
#
# Hardware: one CPU core, seconds. Run here: in every test run.
_base_ = '../_base_/finetune_debug.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
