# MAE ViT-L/16, 800 epochs of ImageNet-1k, the baseline: see mae_vitb.py.
#
#   tools/dist_train.sh configs/pretrain/mae_vitl.py 8
#
# Hardware: 8 GPUs x 512 = 4096. Run here: NOT RUN at full size.
_base_ = './mae_vitb.py'

model = dict(backbone=dict(arch='l'), neck=dict(embed_dim=1024))
