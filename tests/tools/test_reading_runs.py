"""Whole runs from image files: the same run, whichever way images are read, and from an archive too."""

import itertools
import json
import tarfile
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from bootmae.commands.replay import replay
from bootmae.commands.train import train as run_training
from bootmae.data.embedded import photo
from bootmae.distributed.exits import NonFiniteError

CONFIG = str(Path(__file__).resolve().parents[2] / 'configs' / 'pretrain' / 'bootmae_debug.py')
COUNT = itertools.count()
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='DrawMask', img_size=32, patch_size=4, num_masked=48, num_block=39),
    dict(type='PackInputs', algorithm_keys=['ids_shuffle']),
]
STAGED = {'reader': 'gpu', 'reader_device': 'cpu'}


@HOOKS.register_module(force=True)
class ReadingJournal(Hook):
    """Images, masks and losses of each step of the last run; breaks the gradients of ``broken``."""

    steps: list = []

    def __init__(self, broken: int = -1):
        ReadingJournal.steps, self.broken = [], broken

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.broken:
            runner.model.backbone.cls_token.register_hook(lambda gradient: gradient * float('inf'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        images = data_batch['inputs']
        self.steps.append(
            (
                torch.stack(list(images)).float(),
                [sample.ids_shuffle.tolist() for sample in data_batch['data_samples']],
                {name: float(value.detach()) for name, value in outputs.items()},
            )
        )


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Twelve photographs, one of them gray (which the GPU's decoder is not given), one cut off."""
    root = tmp_path_factory.mktemp('images')
    picture = Image.fromarray(photo('china'))
    for k in range(12):
        piece = picture.crop((20 * k, 10 * k, 20 * k + 180 + 9 * k, 10 * k + 150)).convert('L' if k == 5 else 'RGB')
        piece.save(root / f'{k:02}.jpg', quality=95, subsampling=0)
    whole = (root / '07.jpg').read_bytes()
    (root / '07.jpg').write_bytes(whole[: len(whole) // 2])
    return root


def train(work_dir: Path, roots: Path, **options) -> list:
    journal = options.pop('journal', {})
    run_training(
        CONFIG,
        str(work_dir),
        {
            'train_dataloader.dataset': dict(_delete_=True, type='ImageFiles', roots=str(roots), pipeline=PIPELINE),
            'train_dataloader.batch_size': 4,
            'auto_scale_lr.base_batch_size': 4,
            'train_cfg.max_epochs': 2,
            'model.masking': dict(num_masked=48, num_block=39),
            'log_level': 'ERROR',
            'visualizer.vis_backends': [],
            'experiment_name': f'reading_{next(COUNT)}',
            'default_hooks.journal': dict(type='ReadingJournal', **journal),
        }
        | options,
    )
    return ReadingJournal.steps


@pytest.mark.slow
def test_every_reader_trains_the_same_run(folder, tmp_path):
    """Masks, order and replacements are equal; images to a few levels of 255; so are losses."""
    with tarfile.open(tmp_path / 'images.tar', 'w') as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    stock = train(tmp_path / 'stock', folder, reader='stock')
    runs = {
        'cpu': train(tmp_path / 'cpu', folder),
        'gpu': train(tmp_path / 'gpu', folder, **STAGED),
        'tar': train(tmp_path / 'tar', tmp_path / 'images.tar', **STAGED),
    }
    assert len(stock) == 6
    for name, steps in runs.items():
        for (images, masks, losses), (theirs, their_masks, their_losses) in zip(steps, stock, strict=True):
            assert masks == their_masks, name
            assert (images - theirs).abs().mean() < 1, name  # most are reduced while they are decoded
            assert losses == pytest.approx(their_losses, rel=0.02), name
        bad = (tmp_path / name / 'bad_images.txt').read_text()
        assert [line.split('\t')[0].rpartition('/')[2] for line in bad.splitlines()] == ['07.jpg'], name
    assert all(torch.equal(a[0], b[0]) for a, b in zip(runs['gpu'], runs['tar']))


@pytest.mark.slow
def test_a_run_fed_by_the_stage_goes_on_and_is_repeated(folder, tmp_path):
    """Resumed from the middle of an epoch, with a worker, bit for bit; and a bad step of it can be replayed."""
    every = STAGED | {
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'train_dataloader.num_workers': 1,
        'train_dataloader.persistent_workers': True,
    }
    whole = train(tmp_path / 'whole', folder, **every)
    rest = train(
        tmp_path / 'rest', folder, **every, **{'resume': True, 'load_from': str(tmp_path / 'whole' / 'iter_4.pth')}
    )
    assert len(rest) == 2
    for ours, theirs in zip(rest, whole[4:]):
        assert torch.equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    with pytest.raises(NonFiniteError):
        train(
            tmp_path / 'bad',
            folder,
            **STAGED,
            journal=dict(broken=1),
            **{'default_hooks.nonfinite': dict(type='NonFiniteHook', patience=1)},
        )
    dump = next((tmp_path / 'bad' / 'nonfinite').glob('step_1_rank0.json'))
    (result,) = replay(dump)
    assert next(iter(result['passes'].values()))['sum'] == json.loads(dump.read_text())['batches'][0]['loss']
