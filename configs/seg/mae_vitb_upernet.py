# ADE20K segmentation with UperNet on an MAE ViT-B/16: mmseg's recipe for MAE, on the same model as BootMAE.
#
#   tools/dist_train.sh configs/seg/mae_vitb_upernet.py 8 --init work_dirs/mae_vitb/epoch_800.pth
#
# Hardware: 8 GPUs x 2 = 16. Expected (published, 1600 epochs of pretraining): 48.1 mIoU.
# Run here: NOT RUN at full size.
# Takes MAE files of this suite, of mmpretrain and of facebookresearch. Input statistics are ImageNet's.
# mmseg's: learning rate 1e-4, layer decay 0.65, drop path 0.1, no clipping. BootMAE's, for an even comparison: the
# schedule (in mmseg poly begins after the warm-up, less than 1 % apart), bf16 (mmseg's key `fp16` has no effect).
_base_ = ['../_base_/upernet_vitb.py', '../_base_/ade20k_512.py', '../_base_/runtime_seg.py']

model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
