# Your own images and masks: images/{train,val}/NAME.jpg and masks/{train,val}/NAME.png below the folder `images` of a
# config, or --data. A mask has the size of its image and holds the number of each pixel's class in `classes`, from 0;
# 255 is ignored (docs/own_segmentation.md).
classes = ()  # give the names: the heads and data sets follow (bootmae/config/classes.py)
crop_size = (512, 512)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),  # the short side is 512
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),  # after Resize, so that labels keep their size
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=4, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='BaseSegDataset', data_root='data/own', img_suffix='.jpg', pipeline=train_pipeline,
                 data_prefix=dict(img_path='images/train', seg_map_path='masks/train')))
val_dataloader = dict(
    batch_size=1, num_workers=4, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='BaseSegDataset', data_root='data/own', img_suffix='.jpg', pipeline=test_pipeline,
                 data_prefix=dict(img_path='images/val', seg_map_path='masks/val')))
test_dataloader = val_dataloader
train_images = None  # any number
val_evaluator = dict(type='bootmae.evaluation.metrics_seg.IoUByClass', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
