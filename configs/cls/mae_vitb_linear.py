# Linear probing of an MAE ViT-B/16 on ImageNet-1k, 90 epochs: the recipe of facebookresearch/mae, on the
# same ViT as BootMAE.
#
#   tools/dist_train.sh configs/cls/mae_vitb_linear.py 8 --init work_dirs/mae_vitb/epoch_800.pth
#
# Hardware: 8 GPUs x 1024 x accumulation 2 = 16384. Run here: NOT RUN at full size.
# Reads the class token after the final norm of all 12 blocks. Input statistics are ImageNet's.
_base_ = '../_base_/linear_vitb.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(depth=12, out_type='cls_token'))
