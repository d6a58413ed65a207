# SimMIM (simmim.py beside this file) at toy size on handwritten digits: an example of a method of your own.
#
#   tools/train.py examples/simmim_debug.py
#
# Hardware: one CPU core. Expected: the loss falls; nothing else. Run here: in every test run.
_base_ = ['../configs/_base_/pretrain_digits.py', '../configs/_base_/runtime.py']

custom_imports = dict(imports=['bootmae.registry', 'examples.simmim'], allow_failed_imports=False)
model = dict(
    type='PlainSimMIM',
    backbone=dict(
        type='PlainViT',
        arch=dict(embed_dims=48, depth=2, num_heads=3),
        img_size={{_base_.img_size}},
        patch_size={{_base_.patch_size}},
    ),
)
train_dataloader = dict(dataset=dict(labels_per_class=16))
auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='ViTOptimWrapperConstructor',
)
param_scheduler = dict(type='WarmupCosineLR', warmup=0.4, min_lr=1e-5, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
