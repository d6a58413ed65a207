# Linear probing of an MAE ViT-L/16 on ImageNet-1k, 90 epochs: see the one of ViT-B.
#
#   tools/dist_train.sh configs/cls/mae_vitl_linear.py 8 --init work_dirs/mae_vitl/epoch_800.pth
#
# facebookresearch/mae calls 50 epochs sufficient for ViT-L; these are the 90 of its default.
# Hardware: 8 GPUs x 1024 x accumulation 2 = 16384. Run here: NOT RUN at full size.
_base_ = './mae_vitb_linear.py'

model = dict(backbone=dict(arch='large', depth=24), neck=dict(input_features=1024), head=dict(in_channels=1024))
