# As bootmae_camvid.py, for weights of mae_photographs.py: only the input statistics differ.
#
#   tools/train.py configs/seg/mae_camvid.py --init work_dirs/mae_photographs/epoch_800.pth
#
# Hardware: 1 GPU x 8. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/upernet_camvid.py'

model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
