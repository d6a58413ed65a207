"""The recipe's global batch is kept on any number of GPUs, and the remedies in messages work."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train
from bootmae.config.batch import STRETCHABLE, Batch, divisors, norm_note, settle_batch, stretch_iterations

UPERNET = Path(__file__).resolve().parents[2] / 'configs' / 'seg' / 'upernet_debug.py'


@pytest.mark.parametrize(
    'gpus, per_gpu, recipe, accumulation, expected',
    [
        (8, 512, 4096, None, (8, 512, 1)),
        (4, 512, 4096, None, (4, 512, 2)),
        (1, 512, 4096, None, (1, 512, 8)),
        (16, 256, 4096, None, (16, 256, 1)),
        (8, 1024, 16384, None, (8, 1024, 2)),
        (1, 3, 12, None, (1, 3, 4)),
        (2, 512, 4096, 4, (2, 512, 4)),  # given
        (3, 10, None, None, (3, 10, 1)),  # no recipe: whatever comes out
        (3, 10, None, 5, (3, 10, 5)),
    ],
)
def test_settle_batch(gpus, per_gpu, recipe, accumulation, expected):
    batch = settle_batch(gpus, per_gpu, recipe, accumulation)
    assert batch == Batch(*expected)
    assert batch.global_size == expected[0] * expected[1] * expected[2]
    assert recipe in (None, batch.global_size)


@pytest.mark.parametrize('recipe', [32, 1024, 4096, 50])
@pytest.mark.parametrize('per_gpu', [1, 7, 60, 512, 5000])
def test_kept_or_refused_with_a_remedy_that_works(recipe, per_gpu):
    for gpus in range(1, 17):
        accumulation = max(recipe // (gpus * per_gpu), 1)
        if gpus * per_gpu * accumulation == recipe:
            assert settle_batch(gpus, per_gpu, recipe).global_size == recipe
            continue
        with pytest.raises(ValueError, match='--auto-scale-lr') as refusal:
            settle_batch(gpus, per_gpu, recipe)
        size = re.search(r'train_dataloader\.batch_size=(\d+) \(accumulation (\d+) follows\)', str(refusal.value))
        fitting = re.search(r'use one of \[([\d, ]+)\] GPUs', str(refusal.value))
        assert bool(size) == (recipe % gpus == 0)
        if size:
            assert int(size[1]) <= per_gpu
            assert settle_batch(gpus, int(size[1]), recipe) == Batch(gpus, int(size[1]), int(size[2]))
        else:
            assert all(recipe % int(n) == 0 for n in fitting[1].split(','))


@pytest.mark.parametrize(
    'batch, layers, images',
    [
        ((2, 4, 2), [torch.nn.SyncBatchNorm(3)], 8),
        ((2, 4, 2), [torch.nn.BatchNorm2d(3)], 4),
        ((2, 4, 2), [torch.nn.SyncBatchNorm(3), torch.nn.BatchNorm1d(3)], 4),
        ((2, 4, 2), [torch.nn.LayerNorm(3)], None),
        ((4, 4, 1), [torch.nn.SyncBatchNorm(3)], None),
    ],
)
def test_the_log_says_what_batch_normalization_sees(batch, layers, images):
    note = norm_note(Batch(*batch), torch.nn.Sequential(*layers))
    assert note == (
        '' if images is None else f'; batch normalization sees {images} images at a time, whatever the accumulation'
    )


def test_three_gpus_do_not_divide_the_batch():
    with pytest.raises(
        ValueError,
        match=r'3 GPUs x 512 x accumulation 2 = 3072, but the recipe\'s batch is 4096\. '
        r'3 GPUs do not divide it: use one of \[1, 2, 4, 8, 16, 32, 64\] GPUs',
    ):
        settle_batch(3, 512, 4096)


def test_a_given_accumulation_is_not_corrected_in_silence():
    with pytest.raises(ValueError, match='8 GPUs x 512 x accumulation 2 = 8192'):
        settle_batch(8, 512, 4096, 2)


@pytest.mark.parametrize('gpus, per_gpu, accumulation', [(0, 8, None), (1, 0, None), (-1, 8, None), (1, 8, 0)])
def test_nonsense_is_refused(gpus, per_gpu, accumulation):
    with pytest.raises(ValueError, match='give at least 1 for each'):
        settle_batch(gpus, per_gpu, 32, accumulation)


def test_text_and_divisors():
    assert str(Batch(4, 512, 2)) == '4 GPUs x 512 x accumulation 2 = 4096'
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


# --- iterations that count: accumulation keeps the optimizer steps ---


def iteration_based(*schedulers: dict, **changes) -> Config:
    return Config(
        dict(
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=30, val_interval=10, val_begin=20),
            default_hooks=dict(checkpoint=dict(by_epoch=False, interval=15)),
            param_scheduler=[dict(by_epoch=False, **scheduler) for scheduler in schedulers],
        )
        | changes
    )


LINEAR = dict(type='LinearLR', start_factor=1e-3, begin=0, end=7)
SCHEDULES = dict(
    poly=[LINEAR, dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=31)],
    poly_after=[LINEAR, dict(type='PolyLR', power=2.0, eta_min=1e-3, begin=7, end=30)],
    cosine=[LINEAR, dict(type='CosineAnnealingLR', eta_min=0.01, begin=7, end=30)],
    cosine_long=[dict(type='CosineAnnealingLR', eta_min=0.01, T_max=50, end=30)],
    milestones=[LINEAR, dict(type='MultiStepLR', milestones=[12, 20], gamma=0.5, end=30)],
    cosine_to_the_end=[dict(type='CosineAnnealingLR', eta_min=0.01)],
    steps=[dict(type='StepLR', step_size=7, begin=3, end=30)],
    constant=[dict(type='ConstantLR', factor=0.1, begin=0, end=9)],
    ours=[dict(type='WarmupCosineLR', warmup=5, end=30, min_lr=1e-3)],
)


def rates(schedulers: list[dict], accumulation: int) -> list[float]:
    """Return the learning rates of 30 optimizer steps."""
    cfg = iteration_based(*copy.deepcopy(schedulers))
    stretch_iterations(cfg, accumulation)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    extra = dict(accumulation=accumulation) if cfg.param_scheduler[0].type == 'WarmupCosineLR' else {}
    built = [
        PARAM_SCHEDULERS.build(dict(end=30, optimizer=optimizer) | scheduler | extra)
        for scheduler in cfg.param_scheduler
    ]
    found = []
    for iteration in range(cfg.train_cfg.max_iters):
        if (iteration + 1) % accumulation == 0:
            optimizer.step()
            found.append(optimizer.param_groups[0]['lr'])
        for scheduler in built:
            scheduler.step()
    return found


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize('accumulation', [2, 3, 8])
@pytest.mark.parametrize('name', SCHEDULES)
def test_each_optimizer_step_has_its_rate(name, accumulation):
    expected = rates(SCHEDULES[name], 1)
    assert len(expected) == 30
    assert len(set(expected)) > 1
    assert rates(SCHEDULES[name], accumulation) == pytest.approx(expected, rel=1e-9)


def test_all_stretchable_schedules_are_tested():
    assert set(STRETCHABLE) == {s['type'] for schedule in SCHEDULES.values() for s in schedule} - {'WarmupCosineLR'}


def test_length_validation_and_checkpoints():
    cfg = iteration_based(LINEAR)
    stretch_iterations(cfg, 4)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval, cfg.train_cfg.val_begin) == (120, 40, 80)
    assert cfg.default_hooks.checkpoint.interval == 60


def test_what_counts_epochs_stays():
    """Only the warm-up of an epoch-based run is in iterations and is stretched; nothing is without accumulation."""
    cfg = iteration_based(
        dict(type='LinearLR', start_factor=0.1, end=500),
        train_cfg=dict(max_epochs=12, val_interval=1),
        default_hooks=dict(checkpoint=dict(interval=1)),
    )
    cfg.param_scheduler.append(dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11], end=12))
    before = copy.deepcopy(cfg.to_dict())
    stretch_iterations(cfg, 1)
    assert cfg.to_dict() == before
    stretch_iterations(cfg, 2)
    before['param_scheduler'][0] |= dict(begin=1, end=1000)
    assert cfg.to_dict() == before


def test_a_schedule_that_cannot_be_stretched_is_refused():
    cfg = iteration_based(dict(type='ExponentialLR', gamma=0.9))
    with pytest.raises(ValueError, match='ExponentialLR cannot be stretched over 2 iterations .*PolyLR'):
        stretch_iterations(cfg, 2)
    stretch_iterations(cfg, 1)


@pytest.mark.slow
def test_an_accumulated_run_keeps_the_optimizer_steps(tmp_path):
    """Four steps of a segmentor, as one and two iterations each, have the same rates, validations and checkpoints."""
    options = {
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint': dict(interval=2, max_keep_ckpts=-1),
        'default_hooks.logger.interval': 1,
        'log_level': 'ERROR',
        'param_scheduler': [
            dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False),
            dict(type='PolyLR', power=1.0, end=5, by_epoch=False),
        ],
        'auto_scale_lr.base_batch_size': 4,
    } | {
        f'{loader}_dataloader.dataset.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in dict(data_root=str(tmp_path / 'scenes'), scenes=dict(train=6, val=1)).items()
    }
    logs = {}
    for accumulation in (1, 2):
        folder = tmp_path / str(accumulation)
        train(
            str(UPERNET),
            str(folder),
            options
            | {
                'train_dataloader.batch_size': 4 // accumulation,
                'experiment_name': f'batch_accumulated_{accumulation}',
            },
        )
        lines = [json.loads(line) for line in next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()]
        logs[accumulation] = [line for line in lines if 'lr' in line]
        assert [line['step'] for line in lines if 'mIoU' in line] == [2 * accumulation, 4 * accumulation]
        assert {path.name for path in folder.glob('*.pth')} == {
            f'iter_{2 * accumulation}.pth',
            f'iter_{4 * accumulation}.pth',
        }
        optimizer = read_checkpoint(folder / f'iter_{4 * accumulation}.pth')['optimizer']
        assert {int(state['step']) for state in optimizer['state'].values()} == {4}
    assert [line['step'] for line in logs[2]] == list(range(1, 9))
    assert [line['lr'] for line in logs[2][1::2]] == pytest.approx([line['lr'] for line in logs[1]], rel=1e-6)
    assert len({line['lr'] for line in logs[1]}) == 4
