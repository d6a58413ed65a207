# Shared by all pretraining and classification recipes: mmpretrain's runtime, our registry, TensorBoard.
_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['bootmae.registry'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3),
    provenance=dict(type='ProvenanceHook'))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
# Randomness of the model (drop path, mixup, MAE's masks) differs between ranks. Crops and BootMAE's masks depend only
# on seed, epoch and image, for any number of ranks.
randomness = dict(seed=0, diff_rank_seed=True)
