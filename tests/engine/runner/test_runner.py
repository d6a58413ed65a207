"""SuiteRunner checks data and metrics before the first step, fits norms to the processes, follows statistics."""

import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image
from torch import nn

import bootmae.evaluation.metrics_det  # noqa: F401  registers SubsetCocoMetric
from bootmae.commands.test import evaluate
from bootmae.commands.train import train
from bootmae.config.load import load_config
from bootmae.config.weights import follow_statistics
from bootmae.engine.runner.build import build_runner
from bootmae.engine.runner.runner import SuiteRunner, check_single_image, has_norm

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
SEG, DET = CONFIGS / 'seg' / 'upernet_debug.py', CONFIGS / 'det' / 'mask_rcnn_debug.py'
HALF, IMAGENET = ([127.5] * 3,) * 2, ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
COUNT = itertools.count()
GROUPS = dict(type='GN', num_groups=4)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('scenes') / 'scenes'


@pytest.fixture
def options(scenes, tmp_path) -> dict:
    """Options for two steps of two images with a debug config, without validation."""
    values = {
        'log_level': 'ERROR',
        'experiment_name': f'runner_{next(COUNT)}',
        'train_dataloader.batch_size': 2,
        'auto_scale_lr.base_batch_size': 2,
        'work_dir': str(tmp_path / 'work'),
    }
    for loader in ('train', 'val', 'test'):
        values |= {
            f'{loader}_dataloader.dataset.data_root': str(scenes),
            f'{loader}_dataloader.dataset.scenes': dict(train=6, val=5),
        }
    return values


@pytest.fixture
def short(options) -> dict:
    """The same options for the segmentor: one step, then validation."""
    return options | {
        'param_scheduler': [dict(type='ConstantLR', factor=1.0, by_epoch=False)],
        'train_cfg.max_iters': 1,
        'train_cfg.val_interval': 1,
        'val_dataloader.dataset.indices': 1,
    }


@pytest.fixture
def steps(monkeypatch) -> list:
    """A list with an entry for each training step that starts."""
    from mmseg.models import EncoderDecoder

    begun, step = [], EncoderDecoder.train_step
    monkeypatch.setattr(EncoderDecoder, 'train_step', lambda *args, **kwargs: begun.append(1) or step(*args, **kwargs))
    return begun


# --- checks before the first step ---


def test_training_data_is_checked(short, steps):
    with pytest.raises(ValueError, match=r'DigitSceneMasks has \d+ classes, but num_classes is 77 in auxiliary_head'):
        train(str(SEG), None, short | {'model.auxiliary_head.num_classes': 77})
    assert not steps


def test_validation_data_is_checked_before_training(short, steps, tmp_path):
    """Its masks are checked before training, too."""
    short |= {'val_dataloader.dataset.data_root': str(tmp_path / 'broken')}
    DATASETS.build(load_config(SEG, short).val_dataloader.dataset)
    mask = tmp_path / 'broken' / 'annotations' / 'validation' / '000001.png'
    Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 200)).save(mask)
    with pytest.raises(ValueError, match=r'000001.png: label outside the classes: 200 .13824 pixels.: the data set'):
        train(str(SEG), None, short)
    assert not steps


def test_a_metric_over_other_images_is_refused_before_training(options, scenes, monkeypatch):
    from mmdet.models import MaskRCNN

    monkeypatch.setattr(MaskRCNN, 'train_step', lambda *args, **kwargs: pytest.fail('a step was made'))
    ann_file = str(scenes / 'annotations' / 'instances_val2017.json')
    options |= {'val_evaluator.ann_file': ann_file, 'val_dataloader.dataset.indices': 2}
    with pytest.raises(ValueError, match='ann_file has 5 images and the data set 2, .*SubsetCocoMetric'):
        train(str(DET), None, options)


def test_test_data_is_checked(short, tmp_path, options):
    """tools/test.py checks it before it reads the checkpoint."""
    with pytest.raises(ValueError, match='num_classes is 77 in auxiliary_head'):
        evaluate(str(SEG), str(tmp_path / 'none.pth'), None, options | {'model.auxiliary_head.num_classes': 77})


def test_a_data_set_without_images_says_so(short, scenes):
    found = dict(
        _delete_=True,
        type='BaseSegDataset',
        data_root=str(scenes),
        img_suffix='.jpeg',
        metainfo=dict(classes=('a',)),
        data_prefix=dict(img_path='images', seg_map_path='annotations'),
    )
    with pytest.raises(ValueError, match=r"000001.jpg: image with another suffix: not read, since img_suffix='.jpeg'"):
        train(str(SEG), None, short | {'train_dataloader.dataset': found})
    found['data_prefix']['seg_map_path'] = 'images'
    with pytest.raises(ValueError, match=r'BaseSegDataset found no image: .*data_root=.*scenes., .*img_suffix'):
        train(str(SEG), None, short | {'train_dataloader.dataset': found})
    with pytest.raises(ValueError, match='other'):
        SuiteRunner.build_dataloader(dict(dataset=dict(type=_Broken), sampler=dict(type='DefaultSampler')))


class _Broken:
    def __init__(self):
        raise ValueError('other')


# --- batch normalization ---


def normed(kind: type, **kwargs) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), kind(4, **kwargs) if kind is not nn.GroupNorm else kind(2, 4))


def test_which_norms_count():
    assert has_norm(normed(nn.BatchNorm2d), nn.BatchNorm2d)
    assert not has_norm(normed(nn.BatchNorm2d), nn.SyncBatchNorm)
    assert not has_norm(normed(nn.BatchNorm2d).requires_grad_(False), nn.BatchNorm2d), 'fixed: uses no batch'
    assert not has_norm(normed(nn.BatchNorm2d, affine=False), nn.BatchNorm2d)


def test_single_images_and_batch_normalization():
    with pytest.raises(ValueError, match='train_dataloader.batch_size=1, but Sequential has batch normalization, .*GN'):
        check_single_image(normed(nn.BatchNorm2d))
    for model in (normed(nn.GroupNorm), normed(nn.SyncBatchNorm), normed(nn.BatchNorm2d).requires_grad_(False)):
        check_single_image(model)


def test_a_batch_of_one_is_refused_with_bn(short, steps):
    """Also for SyncBN in the config, which is BN in a single process."""
    options = short | {'train_dataloader.batch_size': 1, 'auto_scale_lr.base_batch_size': 1}
    for kind in ('BN', 'SyncBN'):
        heads = {f'model.{head}.norm_cfg.type': kind for head in ('decode_head', 'auxiliary_head')}
        with pytest.raises(ValueError, match='batch_size=1, but EncoderDecoder has batch normalization'):
            train(str(SEG), None, options | heads | {'experiment_name': f'runner_one_{kind}'})
    assert not steps


def test_a_batch_of_one_trains_with_gn(short, steps):
    options = short | {'train_dataloader.batch_size': 1, 'auto_scale_lr.base_batch_size': 1}
    options |= {f'model.{head}.norm_cfg': GROUPS for head in ('decode_head', 'auxiliary_head')}
    trained = train(str(SEG), None, options)
    assert len(steps) == 1
    assert has_norm(trained.model, nn.GroupNorm)
    assert all(value.isfinite().all() for value in trained.model.state_dict().values())


@pytest.mark.parametrize('gpu, kept', [(True, nn.SyncBatchNorm), (False, None)])
def test_synchronized_norms_need_gpus(monkeypatch, gpu, kept):
    """SyncBN of several processes becomes BN without GPUs, with a log line."""
    said = []
    monkeypatch.setattr(
        'bootmae.engine.runner.runner.print_log', lambda message, logger, level: said.append((message, level))
    )
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(Runner, 'wrap_model', lambda self, cfg, model: model)
    ours = SuiteRunner.__new__(SuiteRunner)
    ours._distributed = True
    model = ours.wrap_model(None, normed(nn.SyncBatchNorm))
    assert has_norm(model, nn.SyncBatchNorm) == (kept is not None)
    assert has_norm(model, nn.modules.batchnorm._BatchNorm)
    assert said == ([] if gpu else [('SyncBN needs GPUs: each process normalizes its own batch (BN)', logging.WARNING)])


def test_synchronized_norms_of_one_process_are_bn(short):
    cfg = load_config(SEG, short | {'model.decode_head.norm_cfg.type': 'SyncBN'})
    model = build_runner(cfg, SEG).model
    assert has_norm(model, nn.modules.batchnorm._BatchNorm)
    assert not has_norm(model, nn.SyncBatchNorm)


# --- input statistics ---


def model_of(mean, std):
    return SimpleNamespace(data_preprocessor=ImgDataPreprocessor(mean=mean, std=std))


def test_statistics_that_agree_or_are_unknown():
    for recorded in ({}, dict(img_size=[8, 8]), dict(mean=IMAGENET[0], std=IMAGENET[1])):
        model = model_of(*IMAGENET)
        follow_statistics(model, recorded, 'a.pth', adopt=False)
        assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    follow_statistics(
        SimpleNamespace(data_preprocessor=BaseDataPreprocessor()), dict(mean=HALF[0], std=HALF[1]), 'a.pth', adopt=False
    )


@pytest.mark.parametrize('recorded', [HALF, (HALF[0], IMAGENET[1]), (IMAGENET[0], HALF[1])])
def test_other_statistics_are_refused_or_adopted(recorded):
    model, facts = model_of(*IMAGENET), dict(mean=recorded[0], std=recorded[1])
    with pytest.raises(
        ValueError,
        match=r'a.pth was trained on images normalized with mean \[1.*, but the config has '
        r'mean \[123.67.*: use the config that wrote the file',
    ):
        follow_statistics(model, facts, 'a.pth', adopt=False)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    follow_statistics(model, facts, 'a.pth', adopt=True)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(recorded[0])
    assert model.data_preprocessor.std.flatten().tolist() == pytest.approx(recorded[1])
    assert model.data_preprocessor.mean.shape == (3, 1, 1)


# --- loading ---


def test_weights_without_a_run_are_refused(short, tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'weights.pth holds weights, not a run: start from it with --init'):
        evaluate(str(SEG), str(tmp_path / 'weights.pth'), None, short | {'test_dataloader.dataset.indices': 1})


def test_a_second_run_keeps_its_own_curves(short, tmp_path):
    """mmseg gives every visualizer the same name, but runs of a process must not share one."""
    for name in ('first', 'second'):
        train(str(SEG), None, short | {'experiment_name': f'runner_{name}', 'work_dir': str(tmp_path / name)})
    assert all(len(list((tmp_path / name).glob('*/vis_data/scalars.json'))) == 1 for name in ('first', 'second'))


@pytest.mark.parametrize('first', [True, False])
def test_one_process_writes_the_metrics(tmp_path, monkeypatch, first):
    """mmengine's LoggerHook writes them from all processes into the same file, which corrupts its JSON."""
    ours, hook = SuiteRunner.__new__(SuiteRunner), LoggerHook()
    ours._hooks, hook.json_log_path = [hook], 'metrics.json'
    written = SimpleNamespace(
        log_processor=SimpleNamespace(get_log_after_epoch=lambda *args, **kwargs: ({'mIoU': 1.5}, 'text')),
        test_dataloader=[1],
        logger=logging.getLogger('test_runner'),
        log_dir=str(tmp_path),
    )
    monkeypatch.setattr(Runner, 'test', lambda self: self.hooks[0].after_test_epoch(written))
    monkeypatch.setattr('mmengine.dist.utils.is_main_process', lambda group=None: first)
    ours.test()
    assert [path.read_text() for path in tmp_path.iterdir()] == (['{"mIoU": 1.5}'] if first else [])
