# Fine-tuning of a ViT-S/16 on your own labeled images, 100 epochs; its data and backbone also serve tools/knn.py.
#
#   tools/train.py configs/cls/bootmae_small_data_finetune.py --init work_dirs/bootmae_small_data/epoch_400.pth
#
# Labeled images are ROOT/train/<class>/* and ROOT/val/<class>/*. Set the root of the three loaders and the number of
# classes (model.head.num_classes and data_preprocessor.num_classes), here or as suites/own_images.yaml does.
# The authors' recipe at another size, with their learning rate per image of the batch. Weights are not averaged,
# because the horizon of 0.9998 (5,000 steps) is longer than most runs on little data.
# Hardware: 1 GPU x 128. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/finetune_small_data.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
train_pipeline = {{_base_.pipeline_of_half}}
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
