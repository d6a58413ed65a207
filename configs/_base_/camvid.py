# CamVid, 11 classes of street scenes, 480 x 360 px, in ADE20K's layout: data/camvid/{images,annotations}/
# {training,validation,test}, labels 0-10, 255 unlabeled (source: docs/evidence.md).
# Choices are made on the validation images, results are reported on the test images.
_base_ = './camvid_classes.py'

crop_size = (352, 352)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.98, 2.0), keep_ratio=True),  # at least 352 px
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
camvid = dict(type='BaseSegDataset', data_root='data/camvid', img_suffix='.jpg', seg_map_suffix='.png',
              metainfo=dict(classes={{_base_.classes}}, palette={{_base_.palette}}))
train_dataloader = dict(
    batch_size=8, num_workers=4, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(camvid, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(camvid, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
                 pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(camvid, data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
                 pipeline=test_pipeline))
train_images = 367
val_evaluator = dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
