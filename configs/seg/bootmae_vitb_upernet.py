# ADE20K segmentation with UperNet on a BootMAE ViT-B/16 (paper section 4.3; authors' recipe).
#
#   tools/dist_train.sh configs/seg/bootmae_vitb_upernet.py 8 --init work_dirs/bootmae_vitb/epoch_801.pth
#
# Hardware: 8 GPUs x 2 = 16. Expected (published): 49.1 mIoU, 50.0 with several scales and flip (tools/test.py --tta).
# Run here: NOT RUN at full size. Equality of the backbone with the authors' code: tools/parity.py.
_base_ = ['../_base_/upernet_vitb.py', '../_base_/ade20k_512.py', '../_base_/runtime_seg.py']

model = dict(data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3))
optim_wrapper = dict(optimizer=dict(lr=4e-4), clip_grad=dict(max_norm=3.0))
