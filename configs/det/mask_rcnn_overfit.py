# mask_rcnn_quick.py trained and evaluated on the same 20 photographs of COCO: a box AP above 0.5 shows that labels,
# losses, decoding and evaluator work together.
#
#   tools/train.py configs/det/mask_rcnn_overfit.py
#
# Data: data/coco128. Hardware: one CPU core, half an hour. Expected: box AP above 0.5. Run here: 74.0, once.
_base_ = './mask_rcnn_quick.py'

count, max_epochs = 20, 150
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(512, 384), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(indices=count, pipeline=train_pipeline))
seen = dict(indices=count, ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'))
val_dataloader = dict(dataset=seen)
test_dataloader = dict(dataset=seen)
val_evaluator = dict(type='SubsetCocoMetric', ann_file='data/coco128/annotations/instances_train2017.json')
test_evaluator = val_evaluator
param_scheduler = dict(warmup=4, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=50)
default_hooks = dict(checkpoint=dict(interval=50))
