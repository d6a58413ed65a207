# Fine-tuning of a ViT-Ti/4 on CIFAR-10, 100 epochs; its data and backbone also serve tools/knn.py (docs/evidence.md).
#
#   tools/train.py configs/cls/bootmae_cifar10_finetune.py --init work_dirs/bootmae_cifar10/epoch_200.pth
#
# Few labels: --cfg-options train_dataloader.dataset.labels_per_class=50 (1 %) or 500 (10 %).
# Augmentation is milder than on ImageNet, because small crops and erasing destroy objects of 32 px.
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/finetune_cifar10.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
