# Mask R-CNN on the 2,000 + 500 digit scenes of configs/_base_/digit_scenes.py, all ten digits.
#
#   tools/train.py configs/det/mask_rcnn_digit_scenes.py --init work_dirs/bootmae_digit_scenes/epoch_30.pth
#
# Hardware: one CPU core, minutes. Expected: docs/evidence.md. Run here: see there.
_base_ = ['./mask_rcnn_debug.py', '../_base_/digit_scenes.py']

num_classes = 10
model = dict(roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)))
files = dict(data_root={{_base_.scenes_root}}, scenes={{_base_.digit_scenes}})
train_dataloader = dict(dataset=files)
val_dataloader = dict(dataset=files)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/digit_scenes_2000/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=50))
