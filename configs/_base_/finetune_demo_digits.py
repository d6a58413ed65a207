# finetune_demo.py on handwritten digits.
_base_ = './finetune_demo.py'

data_preprocessor = dict(num_classes=10)
model = dict(head=dict(num_classes=10))
train_dataloader = dict(batch_size=50, dataset=dict(type='DigitImages', labels_per_class=5))
val_dataloader = dict(dataset=dict(type='DigitImages'))
test_dataloader = dict(dataset=dict(type='DigitImages'))
auto_scale_lr = dict(base_batch_size=50)
