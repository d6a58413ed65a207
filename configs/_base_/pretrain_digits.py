# scikit-learn's handwritten digits for the debug size: real images without download or files.
img_size, patch_size = 32, 4
data_preprocessor = dict(type='PretrainPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
train_pipeline = [
    dict(type='RandomResizedCrop', crop_ratio_range=(0.6, 1.0), interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='DigitImages', split='train', size=img_size, pipeline=train_pipeline))
