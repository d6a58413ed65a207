# ImageNet-1k fine-tuning of an MAE ViT-B/16, 100 epochs: the recipe of facebookresearch/mae, on BootMAE's ViT.
#
#   tools/dist_train.sh configs/cls/mae_vitb_finetune.py 8 --init work_dirs/mae_vitb/epoch_800.pth
#
# Hardware: 8 GPUs x 128 = 1024. Expected (published, 800 epochs): 83.4 % top-1. Run here: NOT RUN at full size.
# Takes MAE files of this suite, of mmpretrain and of facebookresearch. Input statistics are ImageNet's. The absolute
# positions are trained, and no weights are averaged.
_base_ = '../_base_/finetune_vitb.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(trainable_positions=True))
train_pipeline = {{_base_.pipeline_of_imagenet}}
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=1024)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay=0.65))
param_scheduler = dict(warmup=5, endpoint=False)
