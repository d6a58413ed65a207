# Crops of photographs, at the size of `make demo`, for weights of either method.
_base_ = './finetune_debug.py'

img_size, patch_size, num_classes = 48, 8, 18
data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(arch=dict(embed_dims=64, depth=3, num_heads=2), img_size=img_size, patch_size=patch_size),
    head=dict(num_classes=num_classes, in_channels=64))
train_dataloader = dict(batch_size=60, dataset=dict(type='GrayPhotoCrops', size=img_size, labels_per_class=20))
val_dataloader = dict(dataset=dict(type='GrayPhotoCrops', size=img_size))
test_dataloader = dict(dataset=dict(type='GrayPhotoCrops', size=img_size))
auto_scale_lr = dict(base_batch_size=60)
param_scheduler = dict(warmup=3)
train_cfg = dict(max_epochs=20, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=1000, save_last=True))
