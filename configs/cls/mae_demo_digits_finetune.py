# mae_demo_finetune.py on handwritten digits.
#
#   tools/train.py configs/cls/mae_demo_digits_finetune.py --init work_dirs/mae_demo_digits/epoch_36.pth
#
# Hardware: one CPU core. Expected: see the report of `make demo`. Run here: in every `make demo`.
_base_ = './mae_demo_finetune.py'

data_preprocessor = dict(num_classes=10)
model = dict(head=dict(num_classes=10))
train_dataloader = dict(batch_size=50, dataset=dict(type='DigitImages', labels_per_class=5))
val_dataloader = dict(dataset=dict(type='DigitImages'))
test_dataloader = dict(dataset=dict(type='DigitImages'))
auto_scale_lr = dict(base_batch_size=50)
