# ADE20K segmentation with UperNet on an MAE ViT-L/16, on the same model as BootMAE.
#
#   tools/dist_train.sh configs/seg/mae_vitl_upernet.py 8 --init work_dirs/mae_vitl/epoch_800.pth
#
# Hardware: 8 GPUs x 2 = 16. Expected (published by MAE, 1600 epochs of pretraining): 53.6 mIoU, with a recipe that
# its authors did not release. Run here: NOT RUN at full size.
# Our choices: mmseg's recipe for MAE's ViT-B, with layer decay 0.75 and drop path 0.2 as in the fine-tuning of MAE's
# ViT-L, and taps and head width as in BEiT-L.
_base_ = './mae_vitb_upernet.py'

model = dict(
    backbone=dict(arch='large', out_indices=(7, 11, 15, 23), drop_path_rate=0.2),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.75))
