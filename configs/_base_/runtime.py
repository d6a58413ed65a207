# What all recipes share: mmpretrain's runtime, the registered classes of this suite, TensorBoard.
_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['bootmae.registry'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3),
    provenance=dict(type='ProvenanceHook'))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
# Model randomness (drop path, mixup, MAE's masks) differs between ranks; crops and BootMAE's masks are functions of
# (seed, epoch, image), on any number of ranks.
randomness = dict(seed=0, diff_rank_seed=True)
