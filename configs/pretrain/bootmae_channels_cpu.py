# bootmae_small_data_cpu.py for images of five channels with 12 bits (docs/channels.md).
#
#   tools/train.py configs/pretrain/bootmae_channels_cpu.py --data data/channels/tiff
#
# Data: examples/channel_images.py data/channels. For other images see tools/channel_statistics.py.
# Hardware: one CPU core, batch 64. Expected: the loss falls. Run here: in the tests.
_base_ = './bootmae_small_data_cpu.py'

image_channels = dict(number=5, ranges=[0, 4095])
train_dataloader = dict(dataset=dict(roots='data/channels/tiff/train'))
