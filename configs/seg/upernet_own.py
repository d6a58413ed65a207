# UperNet with a ViT-B/16 on your own images and masks (docs/own_segmentation.md). Inherit from it and give `images` and
# `classes`, or give both on the command line:
#
#   tools/train.py configs/seg/upernet_own.py --init FILE --data /my/data --cfg-options classes=background,road,car
#
# Images are normalized as for the weights of --init. The recipe is that of ADE20K with MAE's learning rate, 20,000
# iterations instead of 160,000, and gradient clipping.
# Hardware: 1 GPU x 8 x accumulation 2 = 16. Expected: no published number. Run here: NOT RUN at full size.
_base_ = ['../_base_/upernet_vitb.py', '../_base_/own_masks.py', '../_base_/runtime_seg.py']

adopt_statistics = True
norm_cfg = dict(type='BN', requires_grad=True)  # batches of one GPU; SyncBN for small batches on several
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(pyramid=dict(norm_cfg=norm_cfg)),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=dict(max_norm=3.0))
param_scheduler = [dict(type='WarmupCosineLR', warmup=500, min_lr=0.0, by_epoch=False)]  # ends with the run
train_cfg = dict(max_iters=20_000, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000))
