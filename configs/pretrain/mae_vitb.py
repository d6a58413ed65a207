# MAE ViT-B/16, 800 epochs of ImageNet-1k: mmpretrain's own recipe, the baseline (He et al., CVPR 2022).
#
#   tools/dist_train.sh configs/pretrain/mae_vitb.py 8
#
# Hardware: 8 GPUs x 512 = 4096. Expected (published): 83.4 % fine-tuned. Run here: NOT RUN at full size.
# Frozen k-NN every 20 epochs, off by default (docs/watching.md): --cfg-options
#   default_hooks.probe.type=OnlineProbeHook default_hooks.probe.config=configs/cls/mae_vitb_finetune.py
#   default_hooks.probe.interval=20 default_hooks.probe.max_images=50000 default_hooks.probe.workers=8
# What differs from mmpretrain: bf16 for fp16 as for BootMAE, the last incomplete batch is dropped, our image reader.
_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'

custom_imports = dict(imports=['bootmae.registry'], allow_failed_imports=False)
data_preprocessor = dict(type='PretrainPreprocessor')
train_dataloader = dict(
    drop_last=True,
    collate_fn=dict(_delete_=True, type='default_collate'),
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='train', labels=None,
                 pipeline={{_base_.train_pipeline}}))
train_images = 1_281_167
optim_wrapper = dict(
    _delete_=True,
    type='AutocastOptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    paramwise_cfg={{_base_.optim_wrapper.paramwise_cfg}})
default_hooks = dict(
    provenance=dict(type='ProvenanceHook'))
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
resume = False
