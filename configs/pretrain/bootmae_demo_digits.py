# bootmae_demo.py on handwritten digits.
#
#   tools/train.py configs/pretrain/bootmae_demo_digits.py
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
_base_ = './bootmae_demo.py'

train_dataloader = dict(dataset=dict(type='DigitImages'))
train_cfg = dict(max_epochs=24)
