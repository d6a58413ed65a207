# ADE20K segmentation with UperNet on a BootMAE ViT-L/16. The authors published neither recipe nor score for ViT-L.
#
#   tools/dist_train.sh configs/seg/bootmae_vitl_upernet.py 8 --init work_dirs/bootmae_vitl/epoch_801.pth
#
# Hardware: 8 GPUs x 2 = 16. Run here: NOT RUN at full size.
# Our choices: the recipe of ViT-B, with layer decay 0.75 and drop path 0.1 as in the authors' fine-tuning of ViT-L, and
# taps and head width as in BEiT-L.
_base_ = './bootmae_vitb_upernet.py'

model = dict(
    backbone=dict(arch='large', out_indices=(7, 11, 15, 23)),
    decode_head=dict(in_channels=[1024] * 4, channels=1024),
    auxiliary_head=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.75))
