# UperNet on CamVid with a ViT-S/16, for weights of either method.
_base_ = ['./upernet_vitb.py', './camvid.py', './runtime_seg.py']

crop_size, num_classes = {{_base_.crop_size}}, 11
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=crop_size)),
    backbone=dict(arch='small', img_size=crop_size, pyramid=dict(norm_cfg=norm_cfg)),
    decode_head=dict(in_channels=[384] * 4, channels=384, num_classes=num_classes, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=384, num_classes=num_classes, norm_cfg=norm_cfg),
    test_cfg=dict(crop_size=crop_size, stride=(8, 128)))  # images of 360 x 480 in two rows and two columns
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=dict(max_norm=3.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=401),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=8001),
]
train_cfg = dict(max_iters=8000, val_interval=2000)
default_hooks = dict(checkpoint=dict(interval=2000))
