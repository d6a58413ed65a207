# MAE at the size of `make demo`: the baseline to bootmae_demo.py, with the same data, epochs and learning rate.
#
#   tools/train.py configs/pretrain/mae_demo.py
_base_ = './mae_debug.py'

model = dict(
    backbone=dict(arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384)),
    neck=dict(embed_dim=96, decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4))
train_dataloader = dict(
    batch_size=128, dataset=dict(type='PhotoCrops', labels_per_class=None))
auto_scale_lr = dict(base_batch_size=128)
max_epochs = 12
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='WarmupCosineLR', warmup=1, end=max_epochs, min_lr=1e-5, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_epochs))
