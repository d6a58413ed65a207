"""Every config of configs/pretrain and configs/cls trains a few steps at toy size, from an empty folder."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from config_files import CLS, FILES, PRETRAIN, header, init_of
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from bootmae.commands.train import train as run_training
from bootmae.config.images import class_numbers
from bootmae.models.vit import ARCHS

MAE_DEPTHS = {'deit-t': 12, 'deit-s': 12, 'b': 12, 'l': 24}
WIDTH, HEADS, BATCH = 24, 3, 4


@HOOKS.register_module()
class ConfigsTestObserver(Hook):
    """Keeps the starting weights and all losses, and ends the run after one epoch of a schedule of full length."""

    def before_train(self, runner):
        self.before = {key: value.clone() for key, value in runner.model.state_dict().items()}
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = True


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory) -> Path:
    """A folder in ImageNet's layout: 12 training and 4 validation images of two classes."""
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 2)):
        for label in ('n01', 'n02'):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                cv2.imwrite(str(root / split / label / f'{i}.jpg'), image)
    return root


def shrink(cfg: Config, images: Path) -> dict:
    """Options that make a config small and keep the rest: depth, taps, masks, schedule and transforms."""
    small = {
        'auto_scale_lr.base_batch_size': BATCH,
        'default_hooks.checkpoint.interval': 1,
        'log_level': 'ERROR',
        'train_cfg.val_interval': 1,
        'custom_hooks': cfg.get('custom_hooks', []) + [dict(type='ConfigsTestObserver')],
    }
    for loader in {'train_dataloader', 'val_dataloader', 'test_dataloader'} & set(cfg):
        small |= {
            f'{loader}.{key}': value
            for key, value in dict(batch_size=BATCH, num_workers=0, persistent_workers=False, pin_memory=False).items()
        }
        dataset = cfg[loader].dataset
        if dataset.type == 'ImageFiles':
            small[f'{loader}.dataset.roots'] = str(images if dataset.split else images / 'train')
            if len(dataset.pipeline) == 2:  # images of CIFAR-10 have their size already
                load, pack = dataset.pipeline
                size = cfg.model.backbone.img_size
                small[f'{loader}.dataset.pipeline'] = [load, dict(type='Resize', scale=(size, size)), pack]
        elif dataset.type == 'DigitSceneImages':
            small |= {
                f'{loader}.dataset.data_root': str(images.parent / 'digit_scenes'),
                f'{loader}.dataset.scenes': dict(train=12, val=1),
            }
        else:
            small[f'{loader}.dataset.indices'] = 12 if loader == 'train_dataloader' else 4
    if cfg.train_dataloader.dataset.type == 'ImageFiles':
        small |= dict.fromkeys(class_numbers(cfg), 2)
        small |= {f'{name}.topk': (1,) for name in ('val_evaluator', 'test_evaluator') if name in cfg}
    if 'probe' in cfg.default_hooks:
        small['default_hooks.probe.folder'] = ''  # of what a tiny encoder does not fit
    backbone = cfg.model.backbone
    if isinstance(backbone.arch, dict):
        return small
    if backbone.arch in ARCHS:
        arch = dict(_delete_=True, embed_dims=WIDTH, depth=ARCHS[backbone.arch]['depth'], num_heads=HEADS)
        small['model.backbone.arch'] = arch
        if cfg.model.type == 'BootMAE':
            small |= {
                'model.pixel_decoder.embed_dims': 16,
                'model.pixel_decoder.num_heads': HEADS,
                'model.feature_decoder.num_heads': HEADS,
            }
        else:
            small['model.head.in_channels'] = WIDTH
            if 'neck' in cfg.model:
                small['model.neck.input_features'] = WIDTH
    else:
        small['model.backbone.arch'] = dict(
            _delete_=True,
            embed_dims=WIDTH,
            num_layers=MAE_DEPTHS[backbone.arch],
            num_heads=HEADS,
            feedforward_channels=4 * WIDTH,
        )
        small |= {
            f'model.neck.{key}': value
            for key, value in dict(
                embed_dim=WIDTH, decoder_embed_dim=WIDTH, decoder_depth=1, decoder_num_heads=HEADS
            ).items()
        }
    return small


@pytest.fixture(scope='module')
def train(tmp_path_factory, imagenet):
    """``train(name)``: runner and checkpoint of a few steps of a config, once per session."""
    done = {}

    def once(name: str, init: Path | None = None):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            (folder / 'empty').mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder / 'empty')
                options = shrink(Config.fromfile(FILES[name]), imagenet) | dict(experiment_name=f'configs_{name}')
                runner = run_training(str(FILES[name]), str(folder / 'work'), options, init=init and str(init))
            assert not list((folder / 'empty').iterdir())
            done[name] = runner, folder / 'work' / 'epoch_1.pth'
        return done[name]

    return once


def check_training(runner, moving: tuple[str, ...], fixed: tuple[str, ...] = ()) -> None:
    """Check that losses are finite, and that the parts in ``moving`` have changed and those in ``fixed`` have not."""
    observer = next(hook for hook in runner.hooks if isinstance(hook, ConfigsTestObserver))
    assert len(observer.losses) == 3
    assert np.isfinite(observer.losses).all()
    after = runner.model.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, observer.before[key])}
    for prefix in moving:
        assert any(key.startswith(prefix) for key in changed), prefix
    assert not [key for key in changed if key.startswith(fixed)] or not fixed


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in PRETRAIN if 'channels' not in name])  # tools/test_channel_runs.py
def test_pretraining_steps(train, name):
    runner, checkpoint = train(name)
    moving = (
        ('backbone.', 'pixel_decoder.', 'feature_decoder.', 'momentum.')
        if 'bootmae' in name
        else ('backbone.', 'neck.')
    )
    fixed = ('backbone.pos_embed', 'momentum.pos_embed', 'pixel_decoder.pos_embed')
    if 'continued' in name:  # the decoders train alone in the first epochs
        fixed = 'backbone.', 'momentum.'
        moving = tuple(part for part in moving if part not in fixed)
    check_training(runner, moving, fixed)
    assert checkpoint.is_file()


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in CLS if 'work_dirs/' in header(name) and 'channels' not in name])
def test_downstream_steps(train, name):
    """From a checkpoint of the pretraining config in its command; the frozen backbone of a probe does not change."""
    pretrained = train(init_of(name)[0])[1]
    runner, checkpoint = train(name, init=pretrained)
    report = runner.model.backbone.load_report
    assert report.path == str(pretrained)
    if runner.model.backbone.frozen:
        check_training(runner, ('head.',), fixed=('backbone.',))
    else:
        check_training(runner, ('backbone.blocks.0.', 'head.'))
    assert checkpoint.is_file()
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() >= 0
