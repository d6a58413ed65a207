"""The algorithm in other precisions, and with activation checkpointing."""

import pytest
import torch
from inputs import images, samples


@pytest.mark.parametrize(
    'dtype, autocast, tolerance',
    [
        (torch.float64, None, 1e-5),
        (torch.float32, torch.bfloat16, 2e-2),  # 8 bits of mantissa: 4e-3 for each value
        (torch.float32, torch.float16, 2e-3),  # 11 bits: 5e-4
    ],
)
def test_precisions_agree_with_float32(make_bootmae, draw_ids_shuffle, dtype, autocast, tolerance):
    model = make_bootmae()
    data, results = samples(draw_ids_shuffle(model)), []
    for precision, amp in ((torch.float32, None), (dtype, autocast)):
        model.to(precision).zero_grad()
        with torch.autocast('cpu', amp, enabled=amp is not None):
            losses = model.loss(images().to(precision), data)
        total = losses['loss_pixel'] + losses['loss_feature']
        total.backward()
        assert total.dtype == precision, 'sums are in at least float32'
        gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        results.append(({key: value.item() for key, value in losses.items()}, gradients))
    (expected, expected_gradients), (ours, gradients) = results
    assert ours == pytest.approx(expected, rel=tolerance)
    assert set(gradients) == set(expected_gradients)
    norm = torch.stack([g.square().sum() for g in expected_gradients.values()]).sum().sqrt()
    error = torch.stack([(gradients[k] - g).square().sum() for k, g in expected_gradients.items()]).sum().sqrt()
    assert error / norm < 5 * tolerance


@pytest.mark.parametrize('amp', [torch.bfloat16, torch.float16])
def test_the_residual_stream_stays_in_float32(make_bootmae, draw_ids_shuffle, amp):
    model, seen = make_bootmae().float(), []
    for module in (
        *model.backbone.blocks,
        *model.pixel_decoder.blocks,
        *model.feature_decoder.blocks,
        *model.momentum.blocks,
    ):
        module.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast('cpu', amp):
        model.loss(images().float(), samples(draw_ids_shuffle(model)))
    assert len(seen) == 3 + 2 + 2 + 3
    assert set(seen) == {torch.float32}


def test_checkpointing_gives_identical_gradients(make_bootmae, draw_ids_shuffle):
    """The decoders inherit the encoder's option, and each of their blocks runs twice."""
    gradients, calls = [], []
    for with_cp in (False, True):
        model = make_bootmae(backbone=dict(with_cp=with_cp))
        assert model.pixel_decoder.with_cp is model.feature_decoder.with_cp is with_cp
        calls.append(0)

        def count(*args):
            calls[-1] += 1

        for decoder in (model.pixel_decoder, model.feature_decoder):
            for block in decoder.blocks:
                block.mlp.register_forward_pre_hook(count)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sum(model.losses(images, draw_ids_shuffle(model))).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert calls == [4, 8]
    assert set(gradients[0]) == set(gradients[1])
    assert all(torch.equal(gradients[1][name], grad) for name, grad in gradients[0].items())
    alone = make_bootmae(backbone=dict(with_cp=True), feature_decoder=dict(with_cp=False))
    assert (alone.pixel_decoder.with_cp, alone.feature_decoder.with_cp) == (True, False)
