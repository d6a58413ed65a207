# Shared by all detection recipes: mmdet's runtime, our registry, TensorBoard.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['bootmae.registry', 'bootmae.evaluation.metrics_det'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3),
    provenance=dict(type='ProvenanceHook'))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
# Crops, drop path and sampled boxes differ between ranks.
randomness = dict(seed=0, diff_rank_seed=True)
