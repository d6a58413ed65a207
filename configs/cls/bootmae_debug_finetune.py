# Fine-tuning of bootmae_debug.py on handwritten digits, for tests and for trying the tools.
#
#   tools/train.py configs/cls/bootmae_debug_finetune.py --init work_dirs/bootmae_debug/epoch_2.pth
#
# Hardware: one CPU core, seconds. Run here: in every test run.
_base_ = '../_base_/finetune_debug.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
