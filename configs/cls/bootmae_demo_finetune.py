# Fine-tuning and frozen-feature evaluation at the size of `make demo`, for bootmae_demo.py.
_base_ = './bootmae_debug_finetune.py'

num_classes = 18
data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(arch=dict(embed_dims=96, depth=4, num_heads=3)),
    head=dict(num_classes=num_classes, in_channels=96))
train_dataloader = dict(batch_size=64, dataset=dict(type='PhotoCrops', labels_per_class=None))
val_dataloader = dict(dataset=dict(type='PhotoCrops'))
test_dataloader = dict(dataset=dict(type='PhotoCrops'))
auto_scale_lr = dict(base_batch_size=64)
