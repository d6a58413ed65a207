# COCO detection with Mask R-CNN and FPN on an MAE ViT-L/16, 12 epochs: the recipe and model of BootMAE's.
#
#   tools/dist_train.sh configs/det/mae_vitl_maskrcnn_1x.py 8 --init work_dirs/mae_vitl/epoch_800.pth
#
# Hardware: 8 GPUs x 2 = 16. Run here: NOT RUN at full size.
# Takes MAE files of this suite, of mmpretrain and of facebookresearch. Input statistics are ImageNet's.
_base_ = '../_base_/mask_rcnn_vitl_1x.py'

model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
