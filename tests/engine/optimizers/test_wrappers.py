"""Steps whose loss or gradients are not finite change no bit of weights and optimizer state."""

from functools import partial

import pytest
import torch
from breaking import INF, NAN, OPTIMIZERS, Toy, same
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper

from bootmae.engine.hooks.provenance import PRECISIONS
from bootmae.engine.optimizers.wrappers import Guarded, GuardedAmpOptimWrapper, any_nonfinite, poisoned

CLIP = dict(none=None, norm=dict(max_norm=0.5), value=dict(type='value', clip_value=0.5))


@pytest.mark.parametrize('bad', [('loss', NAN), ('loss', INF), ('gradient', NAN), ('gradient', -INF)])
@pytest.mark.parametrize('clip', CLIP)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_a_bad_step_changes_nothing(optimizer, clip, bad):
    """Weights and state keep every bit, and later steps are those of a run without the bad one."""
    toy, clean = (Toy(optimizer=optimizer, clip_grad=CLIP[clip]) for _ in range(2))
    for seed in range(3):
        toy.batch(seed)
        clean.batch(seed)
    assert toy.wrapper.nonfinite.item() == 0
    before = toy.state()
    toy.batch(99, bad)
    assert toy.wrapper.nonfinite.item() == 1
    assert same(toy.state(), before)
    for seed in range(3, 5):
        toy.batch(seed)
        clean.batch(seed)
    assert toy.wrapper.nonfinite.item() == 0
    assert same(toy.state(), clean.state())
    assert not same(toy.state(), before)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_a_bad_first_step(optimizer):
    """The optimizer has no state yet."""
    toy, clean = Toy(optimizer=optimizer), Toy(optimizer=optimizer)
    toy.batch(99, ('gradient', NAN))
    for seed in range(3):
        toy.batch(seed)
        clean.batch(seed)
    assert same(toy.state(), clean.state())


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_mmengines_wrapper_takes_it(optimizer):
    """This shows that the tests above can fail."""
    toy = Toy('OptimWrapper', optimizer)
    toy.batch(0)
    toy.batch(1, ('gradient', NAN))
    toy.batch(2)
    assert not all(torch.isfinite(p).all() for p in toy.model.parameters())
    moved = Toy('OptimWrapper', optimizer)
    before = moved.state()
    moved.batch(0, ('loss', NAN))
    assert not same(moved.state()[:4], before[:4]), 'it updates although the loss is NaN'


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('clip', CLIP)
def test_finite_steps_are_those_of_mmengine(optimizer, clip):
    toys = [
        Toy(kind, optimizer, clip_grad=CLIP[clip], accumulative_counts=2)
        for kind in ('GuardedOptimWrapper', 'OptimWrapper')
    ]
    for toy in toys:
        for seed in range(6):
            toy.batch(seed)
    assert same(toys[0].state(), toys[1].state())


@pytest.mark.parametrize('bad', [('loss', NAN), ('gradient', INF)])
@pytest.mark.parametrize('where', [0, 1, 2])
def test_accumulation(where, bad):
    """One bad batch of three skips its step, and only that step."""
    toy, clean = Toy(accumulative_counts=3), Toy(accumulative_counts=3)
    for seed in range(3):
        toy.batch(seed, bad if seed == where else None)
    assert toy.wrapper.nonfinite.item() == 1
    for seed in range(3, 6):
        toy.batch(seed)
        clean.batch(seed)
    assert toy.wrapper.nonfinite.item() == 0
    assert same(toy.state(), clean.state())


def test_bf16():
    toy, clean = Toy('AutocastOptimWrapper'), Toy('AutocastOptimWrapper')
    toy.batch(99, ('loss', INF))
    toy.batch(99, ('gradient', NAN))
    for seed in range(2):
        toy.batch(seed)
        clean.batch(seed)
    assert same(toy.state(), clean.state())


def test_the_flag_of_gradients():
    big = torch.tensor([3e38, -3e38])  # no sum or square of these is finite
    assert any_nonfinite([big, torch.ones(2, dtype=torch.float64)]).item() == 0
    assert any_nonfinite([]).item() == 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert any_nonfinite([big, torch.tensor([1.0, NAN], dtype=dtype)]).item() == 1
        assert any_nonfinite([torch.tensor([1.0, -INF], dtype=dtype), big]).item() == 1
    assert torch.equal(big, torch.tensor([3e38, -3e38]))


def test_poison_keeps_every_bit():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for value in (1 / 3, 3e38, 1e-45, 0.0):
            loss = torch.tensor(value, dtype=dtype)
            assert torch.equal(poisoned(loss), loss)
            assert poisoned(loss).dtype == dtype
    assert poisoned(torch.tensor(INF)).isnan()


def test_every_wrapper_has_a_name_in_the_rows():
    assert {kind.__name__ for kind in Guarded.__subclasses__()} <= set(PRECISIONS)


# --- float16: mmengine's wrapper refuses a CPU, torch's scaler works there ---


@pytest.fixture
def scaled(monkeypatch):
    def make(scale: float, optimizer: str = 'fused_adamw') -> Toy:
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, device='cpu'))
        toy = Toy('GuardedAmpOptimWrapper', optimizer, loss_scale=dict(init_scale=scale, growth_interval=10_000))
        toy.wrapper.optim_context = partial(OptimWrapper.optim_context, toy.wrapper)  # no cast
        return toy

    return make


@pytest.mark.parametrize('optimizer', ['fused_adamw', 'adamw'])
def test_a_scale_that_is_too_large_is_not_counted(scaled, optimizer):
    toy = scaled(1e39 / 4, optimizer)
    assert isinstance(toy.wrapper, GuardedAmpOptimWrapper)
    before = toy.state()
    toy.wrapper.loss_scaler._lazy_init_scale_growth_tracker(torch.device('cpu'))
    for seed in range(2):
        toy.model[0].weight.register_hook(lambda g: g * 1e3)
        toy.batch(seed)
        assert toy.wrapper.nonfinite.item() == 0
    assert same(toy.state()[:4], before[:4])
    assert toy.wrapper.loss_scaler.get_scale() < 1e39 / 8


@pytest.mark.parametrize('optimizer', ['fused_adamw', 'adamw'])
@pytest.mark.parametrize('bad, scale', [(('loss', NAN), 2.0**16), (('gradient', INF), 1.0)])
def test_what_counts_under_a_scale(scaled, optimizer, bad, scale):
    toy = scaled(scale, optimizer)
    toy.batch(0)
    assert toy.wrapper.nonfinite.item() == 0
    before = toy.state()
    toy.batch(1, bad)
    assert toy.wrapper.nonfinite.item() == 1
    assert same(toy.state(), before)
    toy.batch(2)
    assert toy.wrapper.nonfinite.item() == 0
    assert not same(toy.state(), before)
