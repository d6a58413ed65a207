# vitdet_vitb.py on a ViT-L/16.
_base_ = './vitdet_vitb.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
