# Linear probing of a BootMAE ViT-B/16 on ImageNet-1k, 90 epochs (authors' recipe).
#
#   tools/dist_train.sh configs/cls/bootmae_vitb_linear.py 8 --init work_dirs/bootmae_vitb/epoch_801.pth
#
# Hardware: 8 GPUs x 1024 x accumulation 2 = 16384. Expected (published): 66.1 % top-1. Run here: NOT RUN at full size.
# The probe reads the first 9 blocks (the release's README); its script says 10: model.backbone.depth=10.
_base_ = '../_base_/linear_vitb.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
model = dict(backbone=dict(depth=9, out_type='avg_featmap'))
