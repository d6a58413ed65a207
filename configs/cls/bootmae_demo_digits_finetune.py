# bootmae_demo_finetune.py on handwritten digits.
#
#   tools/train.py configs/cls/bootmae_demo_digits_finetune.py --init work_dirs/bootmae_demo_digits/epoch_24.pth
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
_base_ = '../_base_/finetune_demo_digits.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
