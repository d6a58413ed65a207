# Mask R-CNN on a ViT-B/16 as in ViTDet (Li et al. 2022; detectron2), 100 epochs at 1024 pixels: windows, decomposed
# relative positions, no class token, simple pyramid. The backbone equals detectron2's (tools/parity.py).
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', './coco_lsj.py', './runtime_det.py']

norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
# Keep boxes and their scores in float32 under bf16.
roi_extractor = dict(type='bootmae.transfer.rois.ExactRoIs')
model = dict(
    # Always the whole square, because positions are interpolated to the padded image.
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True, type='TransferViT', arch='base', img_size=224, patch_size=16, drop_path_rate=0.1,
        pyramid=dict(type='SimplePyramid', out_channels=256, extra_level=True), trainable_positions=True,
        class_token=False, window_size=14, relative_positions='decomposed', input_size=1024),
    neck=None,
    rpn_head=dict(type='bootmae.transfer.rois.ExactRPNHead', num_convs=2),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(norm_cfg=norm_cfg)),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))))

auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, fused=True),
    constructor='ViTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.7, decay_biases=True))  # everything decays except norms and absolute positions
# In optimizer steps: 184,375 x 64 images are 100 epochs of 118,000. mmengine's warm-up ends one step early, so 251
# stands for 250.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=251),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=184_375, milestones=[163_889, 177_546], gamma=0.1),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=184_375, val_interval=18_438)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# Everything counts iterations, as the schedule does.
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=9219),
    logger=dict(log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
