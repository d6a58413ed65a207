"""An encoder that trains later than the rest: its groups, and their learning rates."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmpretrain.registry import MODELS

from bootmae.config.batch import stretch_schedule
from bootmae.config.checks import check_schedule
from bootmae.engine.optimizers.layer_decay import ViTOptimWrapperConstructor
from bootmae.engine.optimizers.schedule import WarmupCosineLR, warmup_cosine


def make_wrapper() -> OptimWrapper:
    """Two groups of the encoder, with layer-wise rates, and one of the decoders."""
    groups = [
        dict(params=[torch.nn.Parameter(torch.ones(2))], lr=lr, encoder=encoder)
        for lr, encoder in ((0.5, True), (1.0, True), (1.0, False))
    ]
    return OptimWrapper(torch.optim.AdamW(groups, lr=1.0, weight_decay=0.1))


def schedule(wrapper: OptimWrapper, **changes) -> WarmupCosineLR:
    settings = dict(warmup=1, end=5, encoder_start=2, epoch_length=4, min_lr=0.1) | changes
    return WarmupCosineLR.build_iter_from_epoch(wrapper, **settings)


def rates(wrapper: OptimWrapper, scheduler: WarmupCosineLR, iterations: int) -> list[list[float]]:
    found = []
    for _ in range(iterations):
        found.append([group['lr'] for group in wrapper.optimizer.param_groups])
        for group in wrapper.optimizer.param_groups:
            for value in group['params']:
                value.grad = torch.ones(2)
        wrapper.step()
        scheduler.step()
    return found


def test_rates_by_hand():
    """Zero for two epochs of four steps, then a linear warm-up of one epoch on top of the schedule of the others."""
    wrapper = make_wrapper()
    found = rates(wrapper, schedule(wrapper), 20)
    whole = [warmup_cosine(step, 4, 20, 0.1) for step in range(20)]
    ramp = [0.0] * 8 + [0.0, 0.25, 0.5, 0.75] + [1.0] * 8
    assert [row[2] for row in found] == pytest.approx(whole)
    assert [row[1] for row in found] == pytest.approx([a * b for a, b in zip(whole, ramp, strict=True)])
    assert [row[0] for row in found] == pytest.approx([a * b / 2 for a, b in zip(whole, ramp, strict=True)])


def test_frozen_weights_do_not_change_by_a_bit():
    """Weight decay, too, is scaled by the learning rate."""
    wrapper = make_wrapper()
    rates(wrapper, schedule(wrapper), 8)
    values = [group['params'][0].detach() for group in wrapper.optimizer.param_groups]
    assert torch.equal(values[0], torch.ones(2))
    assert torch.equal(values[1], torch.ones(2))
    assert not torch.equal(values[2], torch.ones(2))


@pytest.mark.parametrize('done', [3, 9])
def test_a_resumed_schedule(done):
    """In the frozen phase and in the warm-up of the encoder; the length of the phase is the config's."""
    wrapper = make_wrapper()
    whole = rates(wrapper, schedule(wrapper), 20)
    first, second = make_wrapper(), make_wrapper()
    half, resumed = schedule(first), schedule(second)
    rates(first, half, done)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(half.state_dict() | dict(encoder_start=0))
    assert rates(second, resumed, 20 - done) == whole[done:]


def test_accumulation_stretches_the_phase():
    settings = dict(type='WarmupCosineLR', warmup=4, end=20, encoder_start=8, by_epoch=False)
    stretch_schedule(settings, 3)
    assert settings == dict(type='WarmupCosineLR', warmup=12, end=60, encoder_start=24, by_epoch=False)
    wrapper = make_wrapper()
    scheduler = schedule(wrapper, epoch_length=12, accumulation=3)
    plain = make_wrapper()
    assert rates(wrapper, scheduler, 60)[2::3] == rates(plain, schedule(plain), 20)


def test_groups_of_their_own(make_bootmae):
    model = make_bootmae()
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05))
    built = {
        marked: ViTOptimWrapperConstructor(cfg, dict(layer_decay=0.5, separate_encoder=marked))(model).optimizer
        for marked in (False, True)
    }
    names = {id(value): name for name, value in model.named_parameters()}
    settings = {}
    for marked, optimizer in built.items():
        settings[marked] = {
            names[id(value)]: (group['lr'], group['weight_decay'], group.get('encoder'))
            for group in optimizer.param_groups
            for value in group['params']
        }
    assert {name: value[:2] for name, value in settings[True].items()} == {
        name: value[:2] for name, value in settings[False].items()
    }
    assert all(value[2] == name.startswith('backbone.') for name, value in settings[True].items())
    assert {value[2] for value in settings[False].values()} == {None}, 'as in older checkpoints'


def test_groups_of_mae():
    """Layer-wise rates of mmpretrain's encoder; its decoder has the full one."""
    arch = dict(embed_dims=24, num_layers=3, num_heads=4, feedforward_channels=96)
    neck = dict(type='MAEPretrainDecoder', num_patches=16, patch_size=8, embed_dim=24, decoder_embed_dim=16)
    backbone = dict(type='MAEViT', arch=arch, img_size=32, patch_size=8)
    model = MODELS.build(dict(type='MAE', backbone=backbone, neck=neck | dict(decoder_depth=1, decoder_num_heads=4)))
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0))
    optimizer = ViTOptimWrapperConstructor(cfg, dict(layer_decay=0.5, separate_encoder=True))(model).optimizer
    found = {(group['lr'], group['encoder']) for group in optimizer.param_groups}
    assert found == {(0.5**k, True) for k in range(5)} | {(1.0, False)}


def test_errors():
    with pytest.raises(
        ValueError, match='encoder_start=8 finds no parameters of the encoder: set .*separate_encoder=True'
    ):
        schedule(OptimWrapper(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1.0)))
    with pytest.raises(
        ValueError, match='encoder_start=20, warmup=4, end=20: the encoder must start and warm up before'
    ):
        schedule(make_wrapper(), encoder_start=5)
    cfg = Config(
        dict(train_cfg=dict(max_epochs=10), param_scheduler=dict(type='WarmupCosineLR', warmup=4, encoder_start=6))
    )
    with pytest.raises(
        ValueError, match=r'param_scheduler.encoder_start=6 and param_scheduler.warmup=4 epochs, but the'
    ):
        check_schedule(cfg)
    cfg.param_scheduler = ConfigDict(type='WarmupCosineLR', warmup=4, encoder_start=5)
    check_schedule(cfg)
