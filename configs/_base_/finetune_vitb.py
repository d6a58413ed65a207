# Shared by the fine-tuning of BootMAE's and MAE's ViT-B/16 on ImageNet-1k. Each method sets batch and learning rate.
_base_ = ['./finetune_imagenet.py', './runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='PlainViT', arch='base', img_size=224, patch_size=16, drop_path_rate=0.1,
                  out_type='avg_featmap'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02 * 0.001)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))  # evenly

optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor')
param_scheduler = dict(type='WarmupCosineLR', min_lr=1e-6, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=100)
