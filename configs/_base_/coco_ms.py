# COCO 2017 instances, multi-scale: short side 480 to 800, long side at most 1333. In the usual layout:
# data/coco/{train2017,val2017,annotations}.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', scales=[(1333, short) for short in range(480, 801, 32)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=2, num_workers=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=4)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoByClass')
test_evaluator = val_evaluator
train_images = 117_266  # those of the 118,287 with an object
