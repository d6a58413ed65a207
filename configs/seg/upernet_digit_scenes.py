# UperNet on the 2,000 + 500 digit scenes of configs/_base_/digit_scenes.py, all ten digits.
#
#   tools/train.py configs/seg/upernet_digit_scenes.py --init work_dirs/bootmae_digit_scenes/epoch_30.pth
#
# Hardware: one CPU core, minutes. Expected: docs/evidence.md. Run here: see there.
_base_ = ['./upernet_debug.py', '../_base_/digit_scenes.py']

num_classes = 11
loss = dict(class_weight=[0.2] + [1.0] * 10)
model = dict(decode_head=dict(num_classes=num_classes, loss_decode=loss),
             auxiliary_head=dict(num_classes=num_classes, loss_decode=loss))
files = dict(data_root={{_base_.scenes_root}}, scenes={{_base_.digit_scenes}})
train_dataloader = dict(dataset=files)
val_dataloader = dict(dataset=files)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=1000)  # four epochs; after two, digits hardly differ from the background
default_hooks = dict(logger=dict(interval=50))
