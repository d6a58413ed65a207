# ImageNet-1k fine-tuning of an MAE ViT-L/16, 50 epochs: see the one of ViT-B.
#
#   tools/dist_train.sh configs/cls/mae_vitl_finetune.py 8 --init work_dirs/mae_vitl/epoch_800.pth
#
# Hardware: 8 GPUs x 128 = 1024. Run here: NOT RUN at full size.
_base_ = './mae_vitb_finetune.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.2), head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=4e-3), paramwise_cfg=dict(layer_decay=0.75))
param_scheduler = dict(warmup=5, min_lr=1e-6)
train_cfg = dict(max_epochs=50)
