# MAE-Lite's transfer recipe for its BootMAE-Tiny, 50 epochs; CIFAR-100 unless --data says otherwise (docs/mae_lite.md).
#
#   tools/train.py configs/cls/bootmae_lite_finetune.py --init data/mae_lite/bootmae_tiny_400e.pth.tar
#
# Data: ROOT/train/<class>/* and ROOT/val/<class>/*, at 224 px; other data sets: suites/mae_lite.yaml.
# Hardware: 1 GPU x 512. Expected: no number of MAE-Lite is quoted here. Run here: NOT RUN at full size.
_base_ = '../_base_/finetune_mae_lite.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
