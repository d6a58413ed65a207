# MAE ViT-B/16 on your own images that starts from given weights: the baseline to bootmae_continued.py, with the same
# encoder, images, batch, learning rates and epochs.
#
#   tools/train.py configs/pretrain/mae_continued.py --data /my/images --init timm:vit_base_patch16_224.mae
#
# Hardware: 1 GPU x 256 x accumulation 2 = 512. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './mae_small_data.py'

model = dict(backbone=dict(arch='b'), neck=dict(embed_dim=768))
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(
    optimizer=dict(lr=0.75e-4 * 512 / 256),
    paramwise_cfg=dict(layer_decay=0.85, separate_encoder=True))
param_scheduler = dict(warmup=5, encoder_start=5, min_lr=1e-6)
train_cfg = dict(max_epochs=100)
default_hooks = dict(probe=dict(options=dict(
    adopt_statistics=True, model=dict(backbone=dict(arch='base'), head=dict(in_channels=768)))))
