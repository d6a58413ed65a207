# Fine-tuning on digits at toy size, for weights of either method.
_base_ = './runtime.py'

img_size, patch_size, num_classes = 32, 4, 10
data_preprocessor = dict(num_classes=num_classes, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PlainViT', arch=dict(embed_dims=48, depth=2, num_heads=3), img_size=img_size,
                  patch_size=patch_size, out_type='avg_featmap'),
    head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=48,
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
              init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02 * 0.001)))
train_pipeline = [
    dict(type='RandomResizedCrop', crop_ratio_range=(0.6, 1.0), interpolation='bicubic'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=32, num_workers=0, drop_last=True, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='DigitImages', split='train', size=img_size, labels_per_class=16, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=256, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitImages', split='val', size=img_size, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='bootmae.evaluation.by_class.AccuracyByClass', topk=(1, ))
test_evaluator = val_evaluator

auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.75))
param_scheduler = dict(type='WarmupCosineLR', warmup=0.4, min_lr=1e-6, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg, test_cfg = dict(), dict()
