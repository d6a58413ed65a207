# mask_rcnn_vitb_1x.py on a ViT-L/16.
_base_ = './mask_rcnn_vitb_1x.py'

model = dict(
    backbone=dict(arch='large', out_indices=(7, 11, 15, 23)),
    neck=dict(in_channels=[1024] * 4))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay=0.85))
