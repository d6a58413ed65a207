"""Own data: the small-data recipes on a folder of JPEGs, non-square crops, and suites/own_images.yaml."""

from functools import reduce
from operator import getitem
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmpretrain.registry import MODELS

from bootmae.commands.train import train as run_training
from bootmae.data.images import ImageFiles
from bootmae.results.provenance import REPOSITORY
from bootmae.suite.cells import make_cells
from bootmae.suite.collect import cell_config
from bootmae.suite.spec import load_suite

SUITE = REPOSITORY / 'suites' / 'own_images.yaml'
CONFIGS = REPOSITORY / 'configs'


@pytest.fixture(scope='module')
def labeled(tmp_path_factory) -> Path:
    """ROOT/{train,val}/<class>/*.jpg: 8 and 4 images of each of two classes, wider than high."""
    root, rng = tmp_path_factory.mktemp('own'), np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 4)):
        for name in ('cat', 'dog'):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(root / split / name / f'{i}.jpg'), rng.integers(0, 256, (80, 120, 3), dtype=np.uint8))
    return root


def options(**values) -> dict:
    """Config values of a run of one epoch with batches of 4; ``__`` stands for a dot."""
    small = {
        'train_cfg.max_epochs': 1,
        'param_scheduler.warmup': 0.5,
        'train_dataloader.batch_size': 4,
        'auto_scale_lr.base_batch_size': 4,
        'log_level': 'ERROR',
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': 1,
    }
    return small | {key.replace('__', '.'): value for key, value in values.items()}


@pytest.mark.slow
def test_wide_images_from_pretraining_to_fine_tuning(labeled, tmp_path):
    """The config of docs/own_data.md for images of (height, width) 64 x 96."""
    size = (64, 96)
    runner = run_training(
        str(CONFIGS / 'pretrain/bootmae_small_data_cpu.py'),
        str(tmp_path / 'pretrain'),
        options(
            model__backbone__img_size=size,
            model__masking=dict(num_masked=72, num_block=59),
            train_dataloader__dataset__roots=str(labeled / 'train'),
        ),
    )
    assert runner.iter == 4
    assert runner.model.masking.grid == (8, 12)
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').data[0]).all()
    batch = next(iter(runner.train_dataloader))
    assert batch['inputs'][0].shape[-2:] == size

    tune = CONFIGS / 'cls/bootmae_small_data_cpu_finetune.py'
    test = Config.fromfile(tune).test_pipeline
    test[1:3] = [dict(type='Resize', scale=size[::-1], backend='pillow', interpolation='bicubic')]
    loaders = {f'{loader}_dataloader__dataset__roots': str(labeled) for loader in ('train', 'val', 'test')}
    loaders |= {f'{loader}_dataloader__dataset__pipeline': test for loader in ('val', 'test')}
    runner = run_training(
        str(tune),
        str(tmp_path / 'tune'),
        options(
            model__backbone__img_size=size,
            model__head__num_classes=2,
            data_preprocessor__num_classes=2,
            train_cfg__val_interval=1,
            **loaders,
        ),
        init=str(tmp_path / 'pretrain/epoch_1.pth'),
    )
    assert runner.model.backbone.load_report.resized == []  # positions of 8 x 12 patches, as pretrained
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() >= 0


@pytest.mark.parametrize('size', [None, 'cpu'])
def test_the_suite_is_set_in_three_places(labeled, tmp_path, size):
    """Folders and number of classes, set in a copy of the suite, reach every cell, with the right depth."""
    text = SUITE.read_text()
    for line, mine in (
        ('data/images', str(labeled / 'train')),
        ('data/labeled', str(labeled)),
        ('&classes 10', '&classes 2'),
    ):
        assert text.count(line) == 1
        text = text.replace(line, mine)
    (tmp_path / 'my.yaml').write_text(text)
    cells = make_cells(load_suite(tmp_path / 'my.yaml', size), tmp_path)
    assert len(cells) == 2 + 2 * 3
    for cell in cells:
        cfg = cell_config(cell)
        if cell.task is None:
            assert cfg.train_dataloader.dataset.roots == str(labeled / 'train')
            assert len(ImageFiles(**{k: v for k, v in cfg.train_dataloader.dataset.items() if k != 'type'})) == 16
            continue
        assert {cfg[f'{loader}_dataloader'].dataset.roots for loader in ('train', 'val', 'test')} == {str(labeled)}
        assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 2
        depth = (2 if size else 9) if cell.task.kind == 'frozen' else None
        assert cfg.model.backbone.get('depth') == depth


def test_the_suite_without_labels(tmp_path):
    """Without tasks the suite only pretrains and needs no labeled folder."""
    content = yaml.safe_load(SUITE.read_text())
    del content['tasks'], content['sizes']['cpu']['tasks']
    (tmp_path / 'my.yaml').write_text(yaml.safe_dump(content))
    for size in (None, 'cpu'):
        cells = make_cells(load_suite(tmp_path / 'my.yaml', size), tmp_path)
        assert [cell.name for cell in cells] == ['pretrain/mae-0', 'pretrain/bootmae-0']


def test_both_methods_train_alike():
    """Both methods have the same encoder, images, batch, learning rate and length at both sizes."""
    for size in ('small_data', 'small_data_cpu'):
        ours, mae = (Config.fromfile(CONFIGS / f'pretrain/{method}_{size}.py') for method in ('bootmae', 'mae'))
        for cfg in (ours, mae):
            assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
        for key in (
            'train_cfg.max_epochs',
            'optim_wrapper.optimizer.lr',
            'param_scheduler.warmup',
            'train_images',
            'train_dataloader.batch_size',
            'train_dataloader.dataset.roots',
        ):
            assert reduce(getitem, key.split('.'), ours) == reduce(getitem, key.split('.'), mae), key
        encoders = [MODELS.build(cfg.model).backbone for cfg in (ours, mae)]
        assert encoders[0].embed_dims == encoders[1].embed_dims
        assert encoders[0].num_heads == encoders[1].layers[0].attn.num_heads
        assert encoders[0].depth == len(encoders[1].layers)
