# Fine-tuning and frozen-feature evaluation at the size of `make demo`, for mae_demo.py. Input statistics are MAE's.
_base_ = './bootmae_demo_finetune.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
