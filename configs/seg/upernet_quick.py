# UperNet on CamVid: real street photographs, 11 classes, from any encoder of the demo's size. Small enough for a CPU.
#
#   tools/train.py configs/seg/upernet_quick.py --init work_dirs/demo/pretrain-gray-photos/bootmae-0/run/epoch_9.pth
#
# Data: data/camvid/{images,annotations}/{training,validation,test}, in ADE20K's layout, labels 0-10, 255 unlabeled.
# Hardware: one CPU core, 5 minutes. Expected: about 30 mIoU, also from an untrained encoder. Run here: 30.1, once.
_base_ = ['./upernet_debug.py', '../_base_/camvid_classes.py']

data_root, img_scale, crop_size, num_classes = 'data/camvid', (240, 180), (160, 208), 11
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size),
    decode_head=dict(num_classes=num_classes, loss_decode=dict(class_weight=None)),
    auxiliary_head=dict(num_classes=num_classes, loss_decode=dict(class_weight=None)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=img_scale, ratio_range=(0.9, 1.8), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
camvid = dict(_delete_=True, type='BaseSegDataset', data_root=data_root, img_suffix='.jpg', seg_map_suffix='.png',
              metainfo=dict(classes={{_base_.classes}}, palette={{_base_.palette}}))
train_dataloader = dict(dataset=dict(
    camvid, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'), pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    camvid, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(
    camvid, data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'), pipeline=test_pipeline))
train_cfg = dict(max_iters=800)
