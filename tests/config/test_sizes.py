"""Checks of image sizes: whole patches in training, padding and sliding windows of downstream configs."""

from pathlib import Path

import pytest
from mmengine.config import Config

from bootmae.config.checks import check_sizes
from bootmae.config.load import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SEG, DET = CONFIGS / 'seg' / 'upernet_debug.py', CONFIGS / 'det' / 'mask_rcnn_debug.py'


def changed(path: Path, **options) -> Config:
    return load_config(path, {key.replace('__', '.'): value for key, value in options.items()})


@pytest.mark.parametrize(
    'path', [p for task in ('seg', 'det') for p in sorted((CONFIGS / task).glob('*.py'))], ids=lambda path: path.stem
)
def test_our_configs_have_whole_patches(path):
    check_sizes(load_config(path))


@pytest.mark.parametrize(
    'path, options, message',
    [
        (
            SEG,
            dict(train_dataloader__dataset__pipeline=[dict(type='RandomCrop', crop_size=(80, 108))]),
            r'RandomCrop crop_size=\(80, 108\) is not a multiple of the backbone.s patch, \(8, 8\) pixels: '
            r'use e.g. \(80, 112\)',
        ),
        (
            SEG,
            dict(train_dataloader__dataset__pipeline=[dict(type='RandomCrop', crop_size=100)]),
            r'RandomCrop crop_size=100 is not a multiple .*use e.g. \(96, 96\)',
        ),
        (SEG, dict(model__data_preprocessor__size=(81, 112)), r'data_preprocessor.size=\(81, 112\) is not a multiple'),
        (
            SEG,
            dict(model__data_preprocessor__test_cfg=dict(_delete_=True, size_divisor=12)),
            r'data_preprocessor.test_cfg.size_divisor=12 is not a multiple .*\(16, 16\)',
        ),
        (
            SEG,
            dict(model__data_preprocessor__test_cfg=None),
            r'data_preprocessor.test_cfg.size_divisor is not set, .* set data_preprocessor.test_cfg.size_divisor=8',
        ),
        (SEG, dict(model__data_preprocessor__size=None), 'set data_preprocessor.size_divisor=8 .*or pad=True'),
        (
            SEG,
            dict(model__test_cfg=dict(mode='slide', crop_size=(80, 100), stride=(40, 50))),
            r'test_cfg.crop_size=\(80, 100\) is not a multiple',
        ),
        (
            DET,
            dict(model__data_preprocessor__pad_size_divisor=20),
            r'data_preprocessor.pad_size_divisor=20 is not a multiple .*\(16, 16\)',
        ),
        (DET, dict(model__data_preprocessor__pad_size_divisor=1), 'pad_size_divisor=1 is not a multiple'),
        (DET, dict(model__backbone__patch_size=(8, 32)), r'pad_size_divisor=16 is not a multiple .*\(8, 32\)'),
    ],
)
def test_sizes_that_are_no_whole_patches(path, options, message):
    cfg = changed(path, **options)
    with pytest.raises(ValueError, match=message):
        check_sizes(cfg)
    cfg.model.backbone.pad = True  # then the backbone pads
    check_sizes(cfg)


def test_sizes_that_are_fine():
    check_sizes(
        changed(
            SEG,
            model__data_preprocessor__size=None,
            model__data_preprocessor__size_divisor=8,
            model__test_cfg=dict(mode='slide', crop_size=(80, 96), stride=(3, 5)),
        )
    )
    crop = [dict(type='RandomCrop', crop_size=(50, 50))]  # mmdet pads what it crops
    check_sizes(changed(DET, train_dataloader__dataset__pipeline=crop))
    for cls in ('bootmae_debug_finetune', 'mae_vitb_linear'):
        check_sizes(load_config(CONFIGS / 'cls' / f'{cls}.py'))
