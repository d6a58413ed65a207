# Linear probing of a BootMAE ViT-B/16 on ImageNet-1k, 90 epochs (authors' recipe).
#
#   tools/dist_train.sh configs/cls/bootmae_vitb_linear.py 8 --init work_dirs/bootmae_vitb/epoch_801.pth
#
# Hardware: 8 GPUs x 1024 x accumulation 2 = 16384. Expected (published): 66.1 % top-1. Run here: NOT RUN at full size.
# The probe reads the first 9 blocks (the release's README); its script says 10: model.backbone.depth=10.
_base_ = ['../_base_/linear_imagenet.py', '../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='PlainViT', arch='base', img_size=224, patch_size=16, depth=9, out_type='avg_featmap',
                  frozen=True),
    neck=dict(type='ClsBatchNormNeck', input_features=768),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01)))

auto_scale_lr = dict(base_batch_size=16384)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='LARS', lr=0.1 * 16384 / 256, momentum=0.9, weight_decay=0.0, eta=0.001))
param_scheduler = dict(type='WarmupCosineLR', warmup=10, min_lr=0.0, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=90)
