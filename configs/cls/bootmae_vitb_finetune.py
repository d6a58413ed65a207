# ImageNet-1k fine-tuning of a BootMAE ViT-B/16, 100 epochs (paper section 4.2; authors' recipe).
#
#   tools/dist_train.sh configs/cls/bootmae_vitb_finetune.py 8 --init work_dirs/bootmae_vitb/epoch_801.pth
#
# Hardware: 8 GPUs x 256 = 2048. Expected (published): 84.2 % top-1. Run here: NOT RUN at full size.
_base_ = ['../_base_/finetune_imagenet.py', '../_base_/runtime.py']

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
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))  # one of both, evenly

auto_scale_lr = dict(base_batch_size=2048)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.6))
param_scheduler = dict(type='WarmupCosineLR', warmup=20, min_lr=1e-6, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=100)
custom_hooks = [dict(type='EMAHook', momentum=1 - 0.9998, evaluate_on_ema=True, evaluate_on_origin=True,
                     priority='ABOVE_NORMAL')]
