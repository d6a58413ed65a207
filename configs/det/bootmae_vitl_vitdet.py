# COCO detection with ViTDet's Mask R-CNN on a BootMAE ViT-L/16, 100 epochs (Li et al. 2022; see mae_vitb_vitdet.py).
#
#   tools/dist_train.sh configs/det/bootmae_vitl_vitdet.py 8 --init work_dirs/bootmae_vitl/epoch_801.pth
#
# Hardware: 8 GPUs x 4 x accumulation 2 = 64, for 80 GB a GPU. No score is published. Run here: NOT RUN at full size.
# ViTDet's recipe for MAE without changes, so it was not tuned for these weights.
# Less memory: --cfg-options model.backbone.with_cp=True
_base_ = '../_base_/vitdet_vitl.py'

model = dict(data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3))
