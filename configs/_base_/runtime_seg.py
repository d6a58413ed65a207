# Shared by all segmentation recipes: mmseg's runtime, our registry, TensorBoard.
# mmseg's runtime is copied, because `mmseg::` in _base_ does not resolve: mmengine 0.10.12 looks for a distribution
# named mmsegmentation, but the maintained one is onedl-mmsegmentation.
default_scope = 'mmseg'
custom_imports = dict(imports=['bootmae.registry'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=16000, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
    provenance=dict(type='ProvenanceHook'))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
# Crops, drop path and dropout differ between ranks.
randomness = dict(seed=0, diff_rank_seed=True)
