# MAE ViT-S/16 on a few hundred photographs: the baseline to bootmae_photographs.py, with the same encoder, images,
# batch, learning rate and epochs.
#
#   tools/train.py configs/pretrain/mae_photographs.py
#
# Hardware: 1 GPU x 64. Expected: no published number. Run here: NOT RUN at full size.
_base_ = './mae_small_data.py'

photographs = ['data/camvid/images/training', 'data/coco128/train2017', 'data/coco128/val2017', 'data/imagenet1000']
train_dataloader = dict(batch_size=64, dataset=dict(roots=photographs))
train_images = 768  # 12 full batches of the 823
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))
param_scheduler = dict(warmup=40)
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=100), pictures=dict(interval=100))
