# mae_demo_finetune.py on handwritten digits.
#
#   tools/train.py configs/cls/mae_demo_digits_finetune.py --init work_dirs/mae_demo_digits/epoch_24.pth
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
_base_ = '../_base_/finetune_demo_digits.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(trainable_positions=True))
