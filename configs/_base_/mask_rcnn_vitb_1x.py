# Mask R-CNN on a ViT-B/16 with four taps and FPN, 12 epochs: the protocol of BootMAE's time, for either method.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', './coco_ms.py', './runtime_det.py']

# Keep boxes and their scores in float32 under bf16.
roi_extractor = dict(type='bootmae.transfer.rois.ExactRoIs')
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True, type='TransferViT', arch='base', img_size=224, patch_size=16, drop_path_rate=0.2,
        out_indices=(3, 5, 7, 11), pyramid=dict(type='TapPyramid', norm_cfg=dict(type='SyncBN')),
        trainable_positions=True),
    neck=dict(in_channels=[768] * 4),
    rpn_head=dict(type='bootmae.transfer.rois.ExactRPNHead'),
    roi_head=dict(bbox_roi_extractor=roi_extractor, mask_roi_extractor=roi_extractor))

auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.75))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
