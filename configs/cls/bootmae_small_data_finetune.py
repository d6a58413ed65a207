# Fine-tuning of a ViT-S/16 on your own labelled images, 100 epochs; its data and backbone also serve tools/knn.py.
#
#   tools/train.py configs/cls/bootmae_small_data_finetune.py --init work_dirs/bootmae_small_data/epoch_400.pth
#
# Labelled images are ROOT/train/<class>/* and ROOT/val/<class>/*. Set the root of the three loaders and the number of
# classes (model.head.num_classes and data_preprocessor.num_classes), here or as suites/own_images.yaml does.
# The authors' recipe at another size: lr is theirs per image of the batch. Weights are not averaged, since the horizon
# of 0.9998 (5,000 steps) is longer than most runs on little data.
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './bootmae_vitb_finetune.py'

data_preprocessor = dict(num_classes=10)
model = dict(backbone=dict(arch='small'), head=dict(num_classes=10, in_channels=384))
train_dataloader = dict(batch_size=128, dataset=dict(roots='data/labelled'))
val_dataloader = dict(dataset=dict(roots='data/labelled'))
test_dataloader = val_dataloader
train_images = 10_000
val_evaluator = dict(topk=(1, ))  # there may be fewer than 5 classes
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=5e-3 * 128 / 2048), paramwise_cfg=dict(layer_decay=0.75))
param_scheduler = dict(warmup=5)
train_cfg = dict(val_interval=10)
custom_hooks = []
