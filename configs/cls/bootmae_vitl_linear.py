# Linear probing of a BootMAE ViT-L/16 on ImageNet-1k, 50 epochs, after block 18 (authors' recipe).
#
#   tools/dist_train.sh configs/cls/bootmae_vitl_linear.py 8 --init work_dirs/bootmae_vitl/epoch_801.pth
#
# Hardware: 8 GPUs x 1024 x accumulation 2 = 16384. Expected (published): 77.1 % top-1. Run here: NOT RUN at full size.
_base_ = './bootmae_vitb_linear.py'

model = dict(backbone=dict(arch='large', depth=18), neck=dict(input_features=1024), head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=0.07 * 16384 / 256))
param_scheduler = dict(warmup=10, min_lr=0.0)
train_cfg = dict(max_epochs=50)
