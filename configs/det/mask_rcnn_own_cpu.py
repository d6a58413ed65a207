# mask_rcnn_own.py with a micro model on small images, minutes on a CPU: to try your data before you rent a GPU. It
# takes encoders of configs/pretrain/bootmae_small_data_cpu.py and of the demo.
#
#   tools/train.py configs/det/mask_rcnn_own_cpu.py --data /my/data
#
# Hardware: one CPU core. Expected: a number; the model is too small for photographs. Run here: in the tests.
_base_ = './mask_rcnn_own.py'

img_scale, channels, strides = (192, 144), 32, [4, 8, 16]
model = dict(
    backbone=dict(
        _delete_=True, type='TransferViT', arch=dict(embed_dims=64, depth=3, num_heads=2), img_size=img_scale[::-1],
        patch_size=8, trainable_positions=True,
        pyramid=dict(type='SimplePyramid', out_channels=channels, scales=(2, 1, 0.5))),
    neck=None,
    rpn_head=dict(
        in_channels=channels, feat_channels=channels,
        anchor_generator=dict(scales=[4, 8], ratios=[0.5, 1.0, 2.0], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=32),
        bbox_head=dict(in_channels=channels, fc_out_channels=128),
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=32),
        mask_head=dict(num_convs=2, in_channels=channels, conv_out_channels=channels)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)), rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(loader, batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(loader, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3, fused=None), clip_grad=dict(max_norm=3.0))
train_cfg = dict(max_epochs=10)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10, max_keep_ckpts=1))
