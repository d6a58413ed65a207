"""A run resumed in the middle of an epoch or a stream equals an uninterrupted one bit for bit."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from bootmae.checkpoints import read_checkpoint
from bootmae.commands.train import train as run_training

pytestmark = pytest.mark.slow  # two runs each; test_train.py has a resumed run among the fast tests
CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
PRETRAIN = CONFIGS / 'pretrain' / 'bootmae_debug.py'
MAE = CONFIGS / 'pretrain' / 'mae_debug.py'
FINETUNE = CONFIGS / 'cls' / 'bootmae_debug_finetune.py'
QUIET = {'log_level': 'ERROR', 'visualizer.vis_backends': []}


@HOOKS.register_module(force=True)
class JobState(Hook):
    """Records what each iteration saw and whether a validation followed, for the last run."""

    lines: dict = {}

    def before_train(self, runner) -> None:
        JobState.lines = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        JobState.lines[runner.iter] = (
            batch_idx,
            runner.epoch,
            torch.stack(list(data_batch['inputs'])).double().sum().item(),
            runner.optim_wrapper.get_lr()['lr'],
            {key: float(value.detach()) for key, value in outputs.items()},
        )

    def after_val_epoch(self, runner, metrics=None) -> None:
        JobState.lines[f'val {runner.iter}'] = metrics


def train(config: Path, work_dir: Path, options: dict | None = None, **kwargs) -> tuple[dict, dict]:
    """Train; return the records and the final weights."""
    runner = run_training(
        str(config),
        str(work_dir),
        QUIET
        | {
            'default_hooks.journal.type': 'JobState',
            'default_hooks.checkpoint.max_keep_ckpts': -1,
            'experiment_name': str(work_dir),
        }
        | (options or {}),
        **kwargs,
    )
    return JobState.lines, {key: value.clone() for key, value in runner.model.state_dict().items()}


def assert_goes_on(config: Path, tmp_path: Path, options: dict, iteration: int) -> None:
    """Check that a run resumed after ``iteration`` has the records and weights of the uninterrupted one."""
    saving = options | {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 1}
    whole, weights = train(config, tmp_path / 'whole', saving)
    path = tmp_path / 'whole' / f'iter_{iteration}.pth'
    assert read_checkpoint(path)['meta']['iter'] == iteration
    torch.manual_seed(99)  # another history of the generators
    rest, again = train(config, tmp_path / 'rest', saving, resume=str(path))
    steps = [key for key in whole if not isinstance(key, int) or key >= iteration]
    assert [key for key in rest if key in steps or isinstance(key, int)] == [
        key for key in steps if isinstance(key, int) or int(key.split()[1]) >= iteration
    ]
    assert all(rest[key] == whole[key] for key in rest)
    assert all(torch.equal(again[key], value) for key, value in weights.items())


@pytest.mark.parametrize('iteration', [3, 5])  # of 5 to an epoch
def test_pretraining(tmp_path, iteration):
    assert_goes_on(PRETRAIN, tmp_path, {'model.backbone.drop_path_rate': 0.3}, iteration)


def test_accumulation_and_workers(tmp_path):
    assert_goes_on(
        PRETRAIN,
        tmp_path,
        {
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 2,
            'optim_wrapper.type': 'AutocastOptimWrapper',
        },
        12,
    )


@pytest.mark.parametrize('workers', [0, 1])  # with workers, samples do not seed the process that draws the masks
def test_masks_drawn_in_the_model(tmp_path, workers):
    assert_goes_on(MAE, tmp_path, {'train_dataloader.num_workers': workers}, 3)


def test_fine_tuning_with_mixup_and_validation(tmp_path):
    """The validation right after the checkpoint is repeated."""
    assert_goes_on(FINETUNE, tmp_path, {'train_cfg.val_interval': 1}, 5)


def test_the_validation_of_a_finished_run_is_repeated(tmp_path):
    lines, _ = train(FINETUNE, tmp_path, {'train_cfg.val_interval': 1})
    end = max(key for key in lines if isinstance(key, int)) + 1
    again, _ = train(FINETUNE, tmp_path, {'train_cfg.val_interval': 1}, resume='auto')
    assert again == {f'val {end}': lines[f'val {end}']}


def test_another_length_of_the_epoch_is_refused(tmp_path):
    train(PRETRAIN, tmp_path)
    with pytest.raises(ValueError, match='train_samples 160, here 128'):
        train(PRETRAIN, tmp_path, {'train_dataloader.dataset.indices': 128}, resume='auto')
    with pytest.raises(ValueError, match='epoch 2, iteration 10, but an epoch now has 2 iterations'):
        train(PRETRAIN, tmp_path, {'train_dataloader.dataset.indices': 64}, resume='auto', resume_changed=True)


def test_a_longer_schedule_is_that_of_the_config(tmp_path):
    """It is not that of the checkpoint, from the first step on."""
    longer = {'train_cfg.max_epochs': 4}
    whole, _ = train(PRETRAIN, tmp_path / 'whole', longer)
    train(PRETRAIN, tmp_path / 'short')
    rest, _ = train(PRETRAIN, tmp_path / 'short', longer, resume='auto', resume_changed=True)
    assert [rest[k][3] for k in range(10, 20)] == [whole[k][3] for k in range(10, 20)]


@pytest.mark.parametrize('accumulation', [1, 2])
def test_another_accumulation(tmp_path, accumulation):
    """A run whose accumulation changes in the middle has the losses of a run with either."""

    def options(n):
        return {
            'train_dataloader.batch_size': 32 // n,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 3,
        }

    def losses(lines, n):
        steps = {}
        for key, line in lines.items():
            steps[key // n] = steps.get(key // n, 0) + line[4]['loss'] / n
        return steps

    other = 3 - accumulation
    whole, weights = train(PRETRAIN, tmp_path / 'whole', options(accumulation))
    rest, again = train(
        PRETRAIN, tmp_path / 'rest', options(other), resume=str(tmp_path / 'whole' / f'iter_{3 * accumulation}.pth')
    )
    ours, theirs = losses(rest, other), losses(whole, accumulation)
    assert sorted(ours) == list(range(3, 10))
    assert [ours[k] for k in ours] == pytest.approx([theirs[k] for k in ours], rel=1e-5)
    assert [rest[other * k][3] for k in ours] == [whole[accumulation * k][3] for k in ours]  # learning rates
    assert all(torch.allclose(again[key], value, atol=2e-5) for key, value in weights.items())


def test_other_schedules_are_not_converted(tmp_path):
    schedule = {'param_scheduler': [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=10)]}
    every = {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 3}
    train(PRETRAIN, tmp_path, schedule | every)
    with pytest.raises(ValueError, match='accumulation 2, the checkpoint has accumulation 1, and LinearLR cannot be'):
        train(
            PRETRAIN,
            tmp_path,
            schedule | every | {'train_dataloader.batch_size': 16},
            resume=str(tmp_path / 'iter_3.pth'),
        )


def test_an_average_of_the_weights(tmp_path):
    """The average of mmengine's EMAHook, as in the fine-tuning of ViT-L, is resumed, too."""
    hook = {'custom_hooks': [dict(type='EMAHook', momentum=0.1, priority='ABOVE_NORMAL')]}
    assert_goes_on(FINETUNE, tmp_path, hook, 3)
    averages = [
        read_checkpoint(max((tmp_path / name).glob('iter_*.pth'), key=lambda path: path.stat().st_mtime_ns))
        for name in ('whole', 'rest')
    ]
    first, second = (content['state_dict'] for content in averages)
    raw = averages[0]['ema_state_dict']
    assert all(torch.equal(second[key], value) for key, value in first.items())
    assert any(not torch.equal(raw[f'module.{key}'], value) for key, value in first.items())
