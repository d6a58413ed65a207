"""Segmentation and detection runs resume from the middle bit for bit."""

import pytest
import torch
from toy_runs import write_config

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train as run_training

FLIPS = """
train_pipeline = [dict(type='LoadImageFromFile'), {annotations}, dict(type='RandomFlip', prob=0.5), {pack}]
train_dataloader = dict(
    num_workers={workers}, batch_size=2, dataset=dict(pipeline=train_pipeline, indices=6, **scenes), {sampler})
model = dict(backbone=dict(drop_path_rate=0.3))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1), logger=dict(interval=1))
train_cfg = dict({loop}, val_interval=100)
"""
LOOPS = dict(seg="type='IterBasedTrainLoop', max_iters=5", det="type='EpochBasedTrainLoop', max_epochs=2")
LABELS = dict(seg="dict(type='LoadAnnotations')", det="dict(type='LoadAnnotations', with_bbox=True, with_mask=True)")
PACK = dict(seg="dict(type='PackSegInputs')", det="dict(type='PackDetInputs')")
SAMPLERS = dict(seg='', det="batch_sampler=dict(type='AspectRatioBatchSampler')")


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp('scenes') / 'scenes'  # drawn at first use


@pytest.mark.slow
@pytest.mark.parametrize('task', ['seg', 'det'])
def test_from_the_middle(scenes, tmp_path, task):
    """With flips, drop path and sampled boxes; the resumed run has two workers, the whole one none."""

    def train(name, workers, resume=None):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(
            folder,
            task,
            scenes,
            FLIPS.format(
                workers=workers, loop=LOOPS[task], sampler=SAMPLERS[task], annotations=LABELS[task], pack=PACK[task]
            ),
        )
        run_training(
            str(config),
            str(folder / 'work'),
            {'log_level': 'ERROR', 'experiment_name': f'{task}_{name}'},
            resume=resume,
        )
        return folder / 'work'

    whole = train('whole', 0)
    last = max(int(path.stem.split('_')[1]) for path in whole.glob('iter_*.pth'))
    assert last == dict(seg=5, det=6)[task]
    rest = train('rest', 2, resume=str(whole / 'iter_2.pth'))
    assert sorted(path.name for path in rest.glob('iter_*.pth')) == [f'iter_{k}.pth' for k in range(3, last + 1)]
    ours, theirs = (read_checkpoint(folder / f'iter_{last}.pth') for folder in (rest, whole))
    assert all(torch.equal(ours['state_dict'][key], value) for key, value in theirs['state_dict'].items())
    moments = theirs['optimizer']['state']
    assert all(
        torch.equal(ours['optimizer']['state'][key]['exp_avg'], state['exp_avg']) for key, state in moments.items()
    )
    before = read_checkpoint(whole / 'iter_2.pth')['state_dict']
    assert any(not torch.equal(before[key], value) for key, value in theirs['state_dict'].items())
