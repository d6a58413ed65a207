# Fine-tuning with few labels, and the data of the frozen-feature evaluation, at the size of `make demo`.
#
#   tools/train.py configs/cls/bootmae_demo_finetune.py --init work_dirs/bootmae_demo/epoch_9.pth
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
_base_ = '../_base_/finetune_demo.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
