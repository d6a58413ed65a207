"""A run resumes with the optimization of another config, or at its position with another accumulation."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import OPTIMIZERS
from survivors import toy_runner, validated

from bootmae.checkpoints import read_checkpoint
from bootmae.engine.runner import elastic

FROZEN = {'optim_wrapper.paramwise_cfg': dict(custom_keys={'bias': dict(lr_mult=0)})}


def rates(folder: Path, epochs: int, schedule: list[dict], resume: str = '', **changes) -> list[dict[str, list[float]]]:
    """Train, and return all learning rates of each of the four iterations of an epoch."""
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            seen.append(runner.optim_wrapper.get_lr())

    options = dict(param_scheduler=schedule, resume=bool(resume), load_from=resume or None, resume_changed=bool(resume))
    runner = toy_runner(folder, dict(max_keep_ckpts=-1), epochs=epochs, **options | changes)
    runner.register_hook(Look())
    runner.train()
    return seen


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize(
    ('before', 'after'),
    [
        ([dict(type='PolyLR', by_epoch=False, end=9)], [dict(type='PolyLR', by_epoch=False, end=17)]),
        ([dict(type='CosineAnnealingLR', T_max=2, end=2)], [dict(type='CosineAnnealingLR', T_max=4, end=4)]),
        (
            [dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=2), dict(type='MultiStepLR', milestones=[1])],
            [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6), dict(type='MultiStepLR', milestones=[3])],
        ),
        ([dict(type='PolyLR', by_epoch=False, end=9)], [dict(type='WarmupCosineLR', warmup=2, end=16, by_epoch=False)]),
        ([], []),
    ],
    ids=['poly', 'cosine', 'several', 'another', 'none'],
)
def test_another_schedule_is_that_of_the_config(tmp_path, before, after, frozen):
    """From the first step on, whatever the checkpoint had; also by epochs, and for groups with a rate of 0."""
    groups = FROZEN if frozen else {}
    rates(tmp_path / 'run', 2, before, **groups)
    changes = groups | {'optim_wrapper.optimizer.lr': 0.05}
    whole = rates(tmp_path / 'whole', 4, after, **changes)
    rest = rates(tmp_path / 'run', 4, after, resume=str(tmp_path / 'run' / 'epoch_2.pth'), **changes)
    assert rest == whole[8:]
    assert rest[0].keys() == ({'lr', 'base_lr'} if frozen else {'lr'})


def test_other_settings_of_the_optimizer_are_those_of_the_config(tmp_path):
    rates(tmp_path, 1, [])
    path, changes = str(tmp_path / 'epoch_1.pth'), {'optim_wrapper.optimizer.betas': (0.5, 0.6)}
    rates(tmp_path, 2, [], resume=path, **changes, **{'optim_wrapper.optimizer.weight_decay': 0.3})
    first, last = (read_checkpoint(tmp_path / f'epoch_{epoch}.pth')['optimizer'] for epoch in (1, 2))
    assert [first['param_groups'][0][key] for key in ('betas', 'weight_decay')] == [(0.9, 0.999), 0.01]
    assert [last['param_groups'][0][key] for key in ('betas', 'weight_decay')] == [(0.5, 0.6), 0.3]
    assert {int(state['step']) for state in last['state'].values()} == {8}, 'the moments are those of the checkpoint'


class Adapted(torch.optim.AdamW):
    """Has state in its parameter groups, as D-Adaptation and Prodigy do."""

    def __init__(self, params, lr: float = 1e-3, **kwargs):
        super().__init__(params, lr=lr, **kwargs)
        self.defaults['steps'] = 0
        for group in self.param_groups:
            group['steps'] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group['steps'] += 1
        return super().step(closure)


def test_state_in_parameter_groups_is_that_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS.module_dict, 'Adapted', Adapted)
    adapted = {'optim_wrapper.optimizer': dict(_delete_=True, type='Adapted', lr=0.01)}
    rates(tmp_path, 1, [], **adapted)
    adapted['optim_wrapper.optimizer'] = dict(_delete_=True, type='Adapted', lr=0.02, betas=(0.5, 0.6))
    rates(tmp_path, 2, [], resume=str(tmp_path / 'epoch_1.pth'), **adapted)
    (group,) = read_checkpoint(tmp_path / 'epoch_2.pth')['optimizer']['param_groups']
    assert (group['steps'], group['lr'], group['betas']) == (8, 0.02, (0.5, 0.6))


def test_a_schedule_that_follows_validations_stays(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(elastic, 'print_log', lambda text, *args: told.append(text))
    plateau = [dict(type='ReduceOnPlateauLR', monitor='acc', patience=0, factor=0.5)]

    def run(**options) -> list[dict[str, list[float]]]:
        loop = dict(_delete_=True, type='EpochLoop', max_epochs=4)
        return rates(tmp_path, 4, plateau, train_cfg=loop, **validated([1.0] * 4), **options)

    whole = run()
    assert [rate['lr'][0] for rate in whole[::4]] == [0.1, 0.1, 0.05, 0.025]
    for stale in (3, 4):
        (tmp_path / f'epoch_{stale}.pth').unlink()
    path = str(tmp_path / 'epoch_2.pth')
    assert run(resume=path) == whole[8:]
    assert told == [
        'ReduceOnPlateauLR depends on earlier validations: learning rate and param_scheduler are those of the '
        'checkpoint, also if the config has others'
    ]
    message = r'ReduceOnPlateauLR .* --resume-changed cannot give .* with initial_lr=0.2 instead of 0.1: resume with'
    with pytest.raises(ValueError, match=message):
        run(resume=path, **{'optim_wrapper.optimizer.lr': 0.2})


def test_another_accumulation_without_a_record_of_the_method(tmp_path):
    """Only runs with ProvenanceHook record their method; all convert their counters."""

    def run(batch: int, accumulation: int, resume: str | None = None) -> list[tuple[int, list[float]]]:
        seen = []

        class Look(Hook):
            def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
                seen.append((runner.iter, runner.optim_wrapper.get_lr()['lr']))

        data = dict(type='SeededSamples', dataset=dict(type='SurvivorData'), bad='skip')
        batches = dict(type='ResumableBatches', drop_last=False, accumulation=accumulation)
        schedule = dict(type='WarmupCosineLR', warmup=0, end=8 * accumulation, by_epoch=False)
        runner = toy_runner(
            tmp_path,
            dict(by_epoch=False, interval=4, max_keep_ckpts=-1),
            train_cfg=dict(_delete_=True, type='IterLoop', max_iters=8 * accumulation),
            train_dataloader=dict(
                batch_size=batch,
                dataset=data,
                sampler=dict(_delete_=True, type='StreamSampler', infinite=True),
                batch_sampler=batches,
            ),
            param_scheduler=[dict(schedule, accumulation=accumulation)],
            resume=resume is not None,
            load_from=resume,
            **{'optim_wrapper.accumulative_counts': accumulation},
        )
        runner.register_hook(Look())
        runner.train()
        return seen

    whole = run(4, 1)
    assert 'bootmae' not in read_checkpoint(tmp_path / 'iter_4.pth')['meta']
    rest = run(2, 2, str(tmp_path / 'iter_4.pth'))
    assert rest == [(2 * step + part, rate) for step, rate in whole[4:] for part in range(2)]
