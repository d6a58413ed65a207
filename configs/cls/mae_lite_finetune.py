# MAE-Lite's transfer recipe for its MAE-Tiny: bootmae_lite_finetune.py with the input statistics of MAE.
#
#   tools/train.py configs/cls/mae_lite_finetune.py --init data/mae_lite/mae_tiny_400e.pth.tar
#
# Hardware: 1 GPU x 512. Expected: no number of MAE-Lite is quoted here. Run here: NOT RUN at full size.
_base_ = '../_base_/finetune_mae_lite.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
