# MAE ViT-B/16, 800 epochs of ImageNet-1k, the baseline: mmpretrain's model, the recipe of facebookresearch/mae (He et
# al., CVPR 2022).
#
#   tools/dist_train.sh configs/pretrain/mae_vitb.py 8
#
# Hardware: 8 GPUs x 512 = 4096. Expected (published): 83.4 % fine-tuned. Run here: NOT RUN at full size.
# Equality with facebookresearch/mae: tools/parity.py.
# Frozen k-NN every 20 epochs, off by default (docs/watching.md): --cfg-options
#   default_hooks.probe.type=OnlineProbeHook default_hooks.probe.config=configs/cls/mae_vitb_finetune.py
#   default_hooks.probe.interval=20 default_hooks.probe.max_images=50000 default_hooks.probe.workers=8
# Differences from mmpretrain's recipe: class and mask token decay, and the warm-up reaches its peak after its last
# step, as in facebookresearch/mae; bf16 instead of fp16, as for BootMAE; incomplete last batches are dropped; our
# reader.
_base_ = ['mmpretrain::_base_/models/mae_vit-base-p16.py', '../_base_/pretrain_imagenet.py', '../_base_/runtime.py']

data_preprocessor = dict(type='PretrainPreprocessor')
optim_wrapper = dict(paramwise_cfg=dict(decay_class_token=True))
param_scheduler = dict(type='WarmupCosineLR', warmup=40, min_lr=0.0, endpoint=False, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=800)
