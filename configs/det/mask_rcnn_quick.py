# Mask R-CNN on the photographs of a small COCO subset (100 + 100 images), from any encoder of this size: small enough
# for a CPU. It checks that data, losses, decoding and evaluator work together; it is no benchmark.
#
#   tools/train.py configs/det/mask_rcnn_quick.py
#
# Data: data/coco128/{train2017,val2017,annotations}, in COCO's layout.
# Hardware: one CPU core, 4 minutes. Expected: 0.0 AP on the 100 other images from an untrained encoder. Run here: once.
_base_ = './mask_rcnn_debug.py'

data_root = 'data/coco128/'
img_scale, patch_size, num_classes, channels = (512, 384), 16, 80, 64
strides = [4, 8, 16, 32]
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(arch=dict(embed_dims=192, depth=4, num_heads=4), img_size=img_scale[::-1], patch_size=patch_size,
                  pyramid=dict(out_channels=channels, scales=(4, 2, 1, 0.5))),
    rpn_head=dict(
        in_channels=channels, feat_channels=channels,
        anchor_generator=dict(scales=[4, 8], ratios=[0.5, 1.0, 2.0], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=32),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=strides, finest_scale=32),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_classes=num_classes)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)), rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(max_per_img=100)))
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
train_dataloader = dict(
    batch_size=4,
    dataset=dict(_delete_=True, type='CocoDataset', data_root=data_root,
                 ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'),
                 filter_cfg=dict(filter_empty_gt=True, min_size=8), pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(_delete_=True, type='CocoDataset', data_root=data_root,
                 ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/'), test_mode=True,
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
auto_scale_lr = dict(base_batch_size=4)
