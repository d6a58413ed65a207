# ImageNet-1k for pretraining: random resized crop (0.2, 1) bicubic, flip, nothing else; labels are not read.
# For other images: train_dataloader.dataset.roots=FOLDER (or a list of folders) train_dataloader.dataset.split=None
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs512_mae.py'

train_dataloader = dict(
    drop_last=True,
    collate_fn=dict(_delete_=True, type='default_collate'),
    dataset=dict(_delete_=True, type='ImageFiles', roots='data/imagenet', split='train', labels=None,
                 pipeline={{_base_.train_pipeline}}))
train_images = 1_281_167  # for tools/plan.py where the images are not at hand
