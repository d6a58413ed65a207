# COCO detection with Mask R-CNN and FPN on a BootMAE ViT-L/16, 12 epochs. The authors published no score for ViT-L.
#
#   tools/dist_train.sh configs/det/bootmae_vitl_maskrcnn_1x.py 8 --init work_dirs/bootmae_vitl/epoch_801.pth
#
# Hardware: 8 GPUs x 2 = 16. Run here: NOT RUN at full size.
# Our choices: as for ViT-B, with CAE's learning rate 1e-4 (2e-4 at batch 32), layer decay 0.85 and taps for ViT-L.
_base_ = '../_base_/mask_rcnn_vitl_1x.py'

model = dict(data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3))
