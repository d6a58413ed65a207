# COCO detection with ViTDet's Mask R-CNN on an MAE ViT-B/16, 100 epochs (Li et al. 2022).
#
#   tools/dist_train.sh configs/det/mae_vitb_vitdet.py 8 --init work_dirs/mae_vitb/epoch_800.pth
#
# Hardware: 8 GPUs x 4 x accumulation 2 = 64, for 80 GB a GPU. Expected (published, 1600 epochs of pretraining):
# 51.6 box AP, 45.9 mask AP. Run here: NOT RUN at full size.
# Takes MAE files of this suite, of mmpretrain and of facebookresearch. Input statistics are ImageNet's.
# Boxes and their scores are computed in float32. Less memory: --cfg-options model.backbone.with_cp=True
_base_ = '../_base_/vitdet_vitb.py'

model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
