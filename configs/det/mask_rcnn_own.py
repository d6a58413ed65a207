# Mask R-CNN with a ViT-B/16 on your own COCO files (docs/own_detection.md): images/{train,val}/ and
# annotations/{train,val}.json below the folder `images` of a config, or --data.
#
#   tools/train.py configs/det/mask_rcnn_own.py --init FILE --data /my/data
#
# The classes are the categories of train.json. Images are normalized as for the weights of --init. The recipe is that
# of mask_rcnn_vitb_1x.py with 50 epochs, because most data sets are smaller than COCO.
# Hardware: 1 GPU x 2 x accumulation 8 = 16. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/mask_rcnn_vitb_1x.py'

adopt_statistics = True
classes = None  # of the training file; or their names in another order, or some of them
model = dict(backbone=dict(pyramid=dict(norm_cfg=dict(type='BN'))))
data_root = 'data/own'
train_dataloader = dict(dataset=dict(
    data_root=data_root, ann_file='annotations/train.json', data_prefix=dict(img='images/train/')))
val_dataloader = dict(dataset=dict(
    data_root=data_root, ann_file='annotations/val.json', data_prefix=dict(img='images/val/')))
test_dataloader = val_dataloader
train_images = None  # any number
val_evaluator = dict(ann_file=data_root + '/annotations/val.json')
test_evaluator = val_evaluator
param_scheduler = [dict(type='WarmupCosineLR', warmup=1, min_lr=0.0, convert_to_iter_based=True)]  # ends with the run
train_cfg = dict(max_epochs=50, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=5))
