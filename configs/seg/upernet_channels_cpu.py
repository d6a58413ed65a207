# UperNet on scenes of five channels, from an encoder of bootmae_channels_cpu.py (docs/channels.md).
#
#   tools/train.py configs/seg/upernet_channels_cpu.py --init work_dirs/bootmae_channels_cpu/epoch_60.pth
#
# Data: examples/channel_images.py data/channels.
# Hardware: one CPU core. Expected: about 72 mIoU. Run here: 71.9, once, and in the tests.
_base_ = './upernet_debug.py'

image_channels = dict(number=5, ranges=[0, 4095])
num_classes, class_weight = 6, None
classes = ('brick', 'chelsea', 'coffee', 'flower', 'grass', 'immunohistochemistry')
model = dict(
    decode_head=dict(num_classes=num_classes, loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(num_classes=num_classes, loss_decode=dict(class_weight=class_weight)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
scenes = dict(
    _delete_=True, type='BaseSegDataset', data_root='data/channels/scenes', img_suffix='.tif', seg_map_suffix='.png',
    metainfo=dict(classes=classes, palette=[[40 * k, 255 - 40 * k, 128] for k in range(num_classes)]))
train_dataloader = dict(dataset=dict(
    scenes, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    scenes, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
