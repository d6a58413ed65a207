# Fine-tuning of a ViT-S/16 on your own labeled images, for weights of either method.
_base_ = './finetune_vitb.py'

data_preprocessor = dict(num_classes=10)
model = dict(backbone=dict(arch='small'), head=dict(num_classes=10, in_channels=384))
train_dataloader = dict(batch_size=128, dataset=dict(roots='data/labeled'))
val_dataloader = dict(dataset=dict(roots='data/labeled'))
test_dataloader = val_dataloader
train_images = 10_000
val_evaluator = dict(topk=(1, ))  # there may be fewer than 5 classes
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=5e-3 * 128 / 2048), paramwise_cfg=dict(layer_decay=0.75))
param_scheduler = dict(warmup=5)
train_cfg = dict(val_interval=10)
