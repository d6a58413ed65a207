# UperNet on a ViT-B/16, 160k iterations: the model and schedule of BootMAE's authors (docs/method.md, section 6). Each
# method sets input statistics, learning rate and clipping.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', bgr_to_rgb=True, pad_val=0, seg_pad_val=255,
        size=(512, 512), test_cfg=dict(size=(512, 512))),  # pads smaller images only
    backbone=dict(
        type='TransferViT', arch='base', img_size=512, patch_size=16, drop_path_rate=0.1, out_indices=(3, 5, 7, 11),
        pyramid=dict(type='TapPyramid', norm_cfg=norm_cfg), trainable_positions=True, relative_positions=True,
        layer_scale=1.0),
    decode_head=dict(
        type='UPerHead', in_channels=[768] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6), channels=768,
        dropout_ratio=0.1, num_classes=150, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead', in_channels=768, in_index=2, channels=256, num_convs=1, concat_input=False,
        dropout_ratio=0.1, num_classes=150, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))

auto_scale_lr = dict(base_batch_size=16)
# Positions and class token do not decay, as the release intends. paramwise_cfg.decay_positions=True does as its code.
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.65))
# The two factors multiply, as in mmcv's warm-up. mmengine's schedulers end one step early, so 1501 and 160001 stand for
# 1500 and 160000.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160_001),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160_000, val_interval=16_000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
