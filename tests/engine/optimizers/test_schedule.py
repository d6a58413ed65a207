"""The learning rate of every iteration, through the real scheduler, against the authors' release."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from bootmae.engine.optimizers.schedule import WarmupCosineLR, warmup_cosine

CONFIGS = Path(__file__).parents[3] / 'configs'
# peak, warm-up epochs, epochs, floor; the golden values are for a batch of 2048 in pretraining
RECIPES = {
    'lr_base_pretrain': (1.5e-4 * 2048 / 256, 40, 801, 1e-4),
    'lr_large_pretrain': (1.5e-4 * 2048 / 256, 40, 801, 1e-5),
    'lr_base_finetune': (5e-3, 20, 100, 1e-6),
    'lr_large_finetune': (1.5e-3, 5, 50, 1e-6),
}


@pytest.fixture(scope='module')
def release(golden):
    return json.loads((golden / 'schedules.json').read_text())


def make_wrapper(lr, *scales):
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=lr * scale) for scale in scales or (1.0,)]
    return OptimWrapper(torch.optim.AdamW(groups, lr=lr))


def build(wrapper, warmup, end, min_lr, epoch_length, **kwargs):
    """Build the scheduler as the runner does from a config."""
    return PARAM_SCHEDULERS.build(
        dict(
            type='WarmupCosineLR',
            warmup=warmup,
            end=end,
            min_lr=min_lr,
            by_epoch=True,
            convert_to_iter_based=True,
            **kwargs,
        ),
        default_args=dict(optimizer=wrapper, epoch_length=epoch_length),
    )


def run(wrapper, scheduler, iterations):
    """Return the learning rate of the first group in each iteration; the scheduler steps after each."""
    rates = []
    for _ in range(iterations):
        rates.append(wrapper.param_groups[0]['lr'])
        wrapper.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_iteration_equals_the_release(release, recipe):
    peak, warmup, epochs, floor = RECIPES[recipe]
    length, stride = release['lr_iters_per_epoch'], release['lr_stride']
    wrapper = make_wrapper(peak)
    scheduler = build(wrapper, warmup, epochs, floor, length)
    assert isinstance(scheduler, WarmupCosineLR)
    rates = run(wrapper, scheduler, epochs * length)
    expected = release[recipe]
    assert len(rates[::stride]) == len(expected)
    assert rates[::stride] == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    'config, recipe',
    [
        ('pretrain/mae_vitb', 'lr_pretrain'),
        ('pretrain/mae_vitl', 'lr_pretrain'),
        ('cls/mae_vitb_finetune', 'lr_finetune_base'),
        ('cls/mae_vitl_finetune', 'lr_finetune_large'),
        ('cls/mae_vitb_linear', 'lr_linear'),
        ('cls/bootmae_vitb_linear', 'lr_linear'),
    ],
)
def test_every_iteration_equals_facebookresearch_mae(golden, config, recipe):
    """With the batch size that the config is meant for."""
    stored = json.loads((golden / 'mae_schedules.json').read_text())
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    wrapper, length = make_wrapper(cfg.optim_wrapper.optimizer.lr), stored['iters_per_epoch']
    scheduler = PARAM_SCHEDULERS.build(
        dict(cfg.param_scheduler, end=cfg.train_cfg.max_epochs),
        default_args=dict(optimizer=wrapper, epoch_length=length),
    )
    rates = run(wrapper, scheduler, cfg.train_cfg.max_epochs * length)[:: stored['stride']]
    assert rates == pytest.approx(stored[recipe], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize('recipe', ['lr_base_finetune', 'lr_large_finetune'])
@pytest.mark.parametrize('accumulation', [2, 3])
def test_accumulation_changes_nothing(release, recipe, accumulation):
    """Each optimizer step has the same learning rate, whatever its number of iterations."""
    peak, warmup, epochs, floor = RECIPES[recipe]
    length, stride = release['lr_iters_per_epoch'], release['lr_stride']
    wrapper = make_wrapper(peak)
    scheduler = build(wrapper, warmup, epochs, floor, length * accumulation, accumulation=accumulation)
    rates = run(wrapper, scheduler, epochs * length * accumulation)
    for part in range(accumulation):
        assert rates[part::accumulation][::stride] == pytest.approx(release[recipe], rel=1e-12, abs=1e-18)


def test_each_group_in_proportion():
    """Layer-wise lr decay scales the peak and the floor of a group."""
    wrapper = make_wrapper(1.0, 1.0, 0.5, 0.125)
    scheduler = build(wrapper, 1, 4, 0.1, 3)
    rates = []
    for _ in range(12):
        rates.append([group['lr'] for group in wrapper.optimizer.param_groups])
        wrapper.step()
        scheduler.step()
    first = [full for full, *_ in rates]
    assert first[:4] == pytest.approx([0, 0.5, 1, 1])
    assert 0.1 < first[-1] < 0.15
    for full, half, eighth in rates:
        assert (half, eighth) == pytest.approx((full / 2, full / 8))


@pytest.mark.parametrize(
    'step, expected',
    [
        (0, 0.0),
        (1, 0.25),
        (3, 0.75),
        (4, 1.0),  # both ends of the warm-up
        (5, 1.0),
        (10, 0.1 + 0.9 * 0.5),
        (15, 0.1),  # cosine
        (7, 0.1 + 0.9 * 0.5 * (1 + 0.8090169943749475)),  # cos 36 degrees
    ],
)
def test_warmup_cosine(step, expected):
    assert warmup_cosine(step, 5, 15, 0.1) == pytest.approx(expected, abs=1e-12)


def test_warmup_without_its_endpoint():
    assert [warmup_cosine(step, 4, 6, 0.0, endpoint=False) for step in range(6)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1, 0.5]
    )


def test_short_and_no_warmup():
    assert [warmup_cosine(step, 1, 3, 0.0) for step in range(3)] == pytest.approx([0, 1, 0.5])
    assert [warmup_cosine(step, 0, 2, 0.0) for step in range(2)] == pytest.approx([1, 0.5])


def test_a_fraction_of_an_epoch():
    scheduler = build(make_wrapper(1.0), 0.4, 2, 0.0, 10)
    assert (scheduler.warmup, scheduler.total, scheduler.end, scheduler.by_epoch) == (4, 20, 20, False)


def test_stays_at_the_end():
    wrapper = make_wrapper(1.0)
    rates = run(wrapper, build(wrapper, 1, 2, 0.0, 4), 12)
    assert rates[8:] == [rates[7]] * 4


def test_state_goes_on_where_it_was():
    wrapper = make_wrapper(1.0)
    scheduler = build(wrapper, 1, 5, 0.01, 4)
    whole = run(wrapper, scheduler, 20)

    first = make_wrapper(1.0)
    half = build(first, 1, 5, 0.01, 4)
    assert run(first, half, 9) == whole[:9]
    second = make_wrapper(1.0)
    resumed = build(second, 1, 5, 0.01, 4)
    resumed.load_state_dict(half.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert run(second, resumed, 11) == whole[9:]


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(min_lr=1.5), r'min_lr=1.5 is not within 0..1.0, the peak learning rate: lower min_lr'),
        (dict(min_lr=-0.1), r'min_lr=-0.1'),
        (dict(warmup=5), r'warmup=50, end=50: the warm-up must be shorter'),
        (dict(warmup=-1), r'warmup=-10'),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        build(make_wrapper(1.0), **(dict(warmup=1, end=5, min_lr=0.0, epoch_length=10) | changes))


def test_a_learning_rate_of_zero():
    with pytest.raises(ValueError, match='the learning rate 0.0 is not positive'):
        build(make_wrapper(0.0), warmup=1, end=5, min_lr=0.0, epoch_length=10)


def test_conversion_needs_epochs():
    with pytest.raises(ValueError, match='convert_to_iter_based needs by_epoch=True'):
        WarmupCosineLR.build_iter_from_epoch(make_wrapper(1.0), warmup=1, end=2, epoch_length=3, by_epoch=False)
