"""The numbers of CollapseMonitorHook against direct computation, and its warning."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from torch.nn import functional as F

from bootmae.engine.hooks.collapse import CollapseMonitorHook, momentum_distance, target_features, target_variance


def normalized(*shape: int) -> torch.Tensor:
    return F.layer_norm(torch.randn(*shape, dtype=torch.float64), shape[-1:])


def test_the_target_is_that_of_the_loss(make_bootmae, draw_ids_shuffle):
    """The normalized targets of masked patches equal the features at their positions."""
    model = make_bootmae().eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    out = model.predict(images, draw_ids_shuffle(model, 3))
    features = target_features(model, images)
    places = out.ids_masked.unsqueeze(-1).expand_as(out.targets)
    torch.testing.assert_close(features.gather(1, places), F.layer_norm(out.targets, out.targets.shape[-1:], eps=1e-6))


def test_target_variance_of_every_kind_of_target():
    """One target for all; one per position; one per image; independent ones."""
    one, place, image = normalized(1, 1, 16), normalized(1, 9, 16), normalized(64, 1, 16)
    cases = dict(
        one=one.expand(64, 9, 16),
        place=place.expand(64, 9, 16),
        image=image.expand(64, 9, 16),
        free=normalized(64, 9, 16),
    )
    found = {name: tuple(map(float, target_variance(features))) for name, features in cases.items()}
    assert found['one'] == pytest.approx((0, 0), abs=1e-12)
    assert found['place'] == pytest.approx((float(place.var(dim=1, correction=0).mean()), 0), abs=1e-12)
    assert found['place'][0] > 0.7
    assert found['image'] == pytest.approx((1, 1), abs=0.06)
    assert found['free'] == pytest.approx((1, 1), abs=0.03)


def test_target_variance_is_the_error_of_the_best_constants():
    """One constant for all patches, and one per position (for infinitely many images, hence the factor)."""
    features = normalized(5, 9, 16) + torch.arange(16) / 8
    whole, between = target_variance(features)
    torch.testing.assert_close(whole, (features - features.mean(dim=(0, 1))).square().mean())
    torch.testing.assert_close(between, (features - features.mean(dim=0)).square().mean() * 5 / 4)


def test_one_image_says_nothing_of_the_difference_between_images():
    assert math.isnan(target_variance(normalized(1, 9, 16))[1])


def test_momentum_distance(make_bootmae):
    """Only trained weights of both encoders count, not fixed positions."""
    model = make_bootmae()
    online = dict(model.backbone.named_parameters())
    for name, weight in model.momentum.named_parameters():
        weight.data.copy_(online[name] * (1 if name == 'pos_embed' else 1.1))
    model.backbone.norm.weight.data.fill_(1e6)
    model.momentum.pos_embed.data += 1e6
    assert float(momentum_distance(model)) == pytest.approx(0.1)


def runner_of(count: int, interval: int, length: int = 100, batch: int = 16, processes: int = 4) -> SimpleNamespace:
    hub = MessageHub.get_instance(f'monitor_{count}_{interval}')
    return SimpleNamespace(
        hooks=[LoggerHook(interval=interval)],
        train_dataloader=range(length),
        message_hub=hub,
        world_size=processes,
        cfg=Config(dict(train_dataloader=dict(batch_size=batch))),
        model=torch.nn.Linear(1, 1),
    )


def test_speed_since_the_last_line():
    """Older values do not count; steps without a log line compute nothing."""
    runner, hook = runner_of(6, 3), CollapseMonitorHook()
    hook.before_train(runner)
    for step, (seconds, waited) in enumerate([(9, 9), (1, 0.5), (1, 0.5), (2, 1), (2, 0), (4, 1)]):
        runner.message_hub.update_scalar('train/time', seconds)
        runner.message_hub.update_scalar('train/data_time', waited)
        hook.after_train_iter(runner, step, {})
        assert ('train/images_per_second' in runner.message_hub.log_scalars) == (step >= 2)
    logged = {
        name: runner.message_hub.get_scalar(f'train/{name}').data[0].tolist()
        for name in ('images_per_second', 'waiting_for_data')
    }
    assert logged['images_per_second'] == pytest.approx([64 * 3 / 11, 64 * 3 / 8])
    assert logged['waiting_for_data'] == pytest.approx([10 / 11, 2 / 8])


def test_a_run_without_a_timer_goes_on():
    runner, hook = runner_of(8, 1), CollapseMonitorHook()
    hook.after_train_iter(runner, 0, {})
    assert not runner.message_hub.log_scalars


def test_the_last_iterations_count_where_the_log_has_them():
    hook = CollapseMonitorHook()
    for interval, length, due in ((3, 4, [2]), (5, 4, [3]), (2, 4, [1, 3])):
        runner = runner_of(7, interval, length)
        assert [step for step in range(length) if hook.is_due(runner, step)] == due
    assert not hook.is_due(SimpleNamespace(hooks=[], train_dataloader=range(4)), 3)


def test_a_collapse_is_told_once_and_again_after_a_recovery(caplog):
    hook, runner = CollapseMonitorHook(collapsed=0.1), SimpleNamespace(logger=logging.getLogger('monitor'))
    told = []
    for between in (0.3, 0.11, 0.05, 0.04, 0.15, 0.05, 0.25, 0.09, math.nan):
        caplog.clear()
        hook.warn_of_collapse(runner, dict(target_variance=0.5, target_variance_images=between))
        told.append(len(caplog.records))
        if told[-1]:
            text = caplog.records[0].getMessage()
    assert told == [0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert '\n' not in text
    assert 'COLLAPSE: only 9.00% of the feature target' in text
    assert 'larger EMA decays' in text
    hook.warn_of_collapse(runner, dict(images_per_second=1.0))


def test_a_target_that_collapsed_is_seen(make_bootmae):
    """A momentum encoder without its patch embedding has the same target for every image."""
    model = make_bootmae().float()
    model.momentum.patch_embed.proj.weight.data.zero_()
    health = CollapseMonitorHook().health(model, dict(inputs=torch.randn(6, 3, 32, 32)))
    assert float(health['target_variance_images']) < 1e-9
    assert float(health['target_variance']) > 0.05  # its places differ


@pytest.mark.parametrize('wrong', [dict(images=1), dict(collapsed=1), dict(collapsed=-0.1)])
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match='a threshold from 0 to 1'):
        CollapseMonitorHook(**wrong)
