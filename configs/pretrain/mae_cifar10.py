# MAE ViT-Ti/4 on CIFAR-10, 200 epochs: the baseline to bootmae_cifar10.py, with the same encoder, images, batch,
# learning rate and epochs, and as many decoder blocks (BootMAE: two decoders of two, MAE: one of four).
#
#   tools/train.py configs/pretrain/mae_cifar10.py
#
# Hardware: 1 GPU x 512. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './mae_small_data.py'

patch_size = 4
model = dict(
    backbone=dict(arch='deit-t', img_size=32, patch_size=patch_size),
    neck=dict(num_patches=64, patch_size=patch_size, embed_dim=192, decoder_embed_dim=128, decoder_depth=4,
              decoder_num_heads=4),
    head=dict(patch_size=patch_size))
train_dataloader = dict(num_workers=12, dataset=dict(roots='data/cifar10/train'))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = dict(warmup=10)
train_cfg = dict(max_epochs=200)
default_hooks = dict(probe=dict(
    folder='data/cifar10/train', config='configs/cls/mae_cifar10_finetune.py', interval=10))
