# bootmae_small_data_finetune.py for weights of mae_small_data.py, with other input statistics and trained
# absolute positions.
#
#   tools/train.py configs/cls/mae_small_data_finetune.py --init work_dirs/mae_small_data/epoch_400.pth
#
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/finetune_small_data.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(trainable_positions=True))
train_pipeline = {{_base_.pipeline_of_imagenet}}
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
param_scheduler = dict(endpoint=False)
