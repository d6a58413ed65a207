# UperNet on CamVid with a ViT-S/16 of bootmae_photographs.py, 8,000 iterations (suites/camvid.yaml, docs/evidence.md).
#
#   tools/train.py configs/seg/bootmae_camvid.py --init work_dirs/bootmae_photographs/epoch_800.pth
#   tools/test.py configs/seg/bootmae_camvid.py work_dirs/bootmae_camvid/iter_8000.pth
#
# Hardware: 1 GPU x 8. Expected: no published number. Run here: NOT RUN at full size.
_base_ = '../_base_/upernet_camvid.py'

model = dict(data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3))
