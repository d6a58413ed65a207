"""The algorithm: construction, gradients, momentum encoder, masks and losses."""

import copy

import numpy as np
import pytest
import torch
from inputs import images, samples
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from bootmae.models import BootMAE
from bootmae.models.masking import BlockMasking

VISIBLE, MASKED = 5, 11  # of 16 patches


def change_patches(inputs, ids, patch=8):
    """Replace the pixels of patches ``ids`` (B, any) in a grid of 4 x 4."""
    changed = inputs.clone()
    for b, row in enumerate(ids.tolist()):
        for i in row:
            r, c = i // 4 * patch, i % 4 * patch
            changed[b, :, r : r + patch, c : c + patch] = torch.rand(3, patch, patch, dtype=inputs.dtype) * 3 - 1
    return changed


# Building


def test_built_by_name():
    model = MODELS.build(
        dict(
            type='BootMAE',
            backbone=dict(type='PlainViT', arch=dict(embed_dims=24, depth=4, num_heads=4), img_size=32, patch_size=8),
            pixel_decoder=dict(embed_dims=16),
        )
    )
    assert type(model) is BootMAE
    assert MODELS.get('mmpretrain.BootMAE') is BootMAE
    assert model.taps == (0, 3), 'the first and the last block'
    assert model.masking == BlockMasking((4, 4))
    assert [len(decoder.blocks) for decoder in (model.pixel_decoder, model.feature_decoder)] == [2, 2]
    assert model.feature_weight == 1
    assert model.weighted


@pytest.mark.parametrize(
    'arch, width, depth, heads',
    [('tiny', 192, 12, 3), ('small', 384, 12, 6), ('base', 768, 12, 12), ('large', 1024, 24, 16)],
)
def test_named_sizes(arch, width, depth, heads):
    with torch.device('meta'):
        model = MODELS.build(dict(type='BootMAE', backbone=dict(type='PlainViT', arch=arch)))
    inner = 512 // heads * heads
    assert model.taps == (0, depth - 1)
    assert (model.masking.num_masked, model.masking.num_block) == (147, 120)
    pixel, feature = model.pixel_decoder, model.feature_decoder
    assert pixel.embed.weight.shape == (512, width)
    assert pixel.blocks[1].self_attn.qkv.weight.shape == (3 * inner, 512)
    assert pixel.blocks[1].cross_attn.kv.weight.shape == (2 * inner, width)
    assert pixel.head.weight.shape == (512, 3, 16, 16)
    assert feature.embed.weight.shape == feature.head.weight.shape == (width, width)
    assert feature.blocks[1].self_attn.qkv.weight.shape == (3 * width, width)
    assert pixel.mask_token.shape == (1, 1, 512)
    assert feature.mask_token.shape == (1, 1, width)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (
            dict(pixel_decoder=dict(embed_dims=16, tap=3)),
            r'decoder tap 3 is not a block of an encoder with depth 3: use 0..2',
        ),
        (dict(feature_decoder=dict(tap=-1)), 'decoder tap -1'),
        (dict(masking=dict(num_masked=16)), 'num_masked=16 do not fit 16 patches'),
        (dict(feature_decoder=dict(depth=0)), 'at least one block'),
        (dict(pixel_decoder=dict(embed_dims=18)), 'multiple of 4, not 18'),
    ],
)
def test_construction_errors(make_bootmae, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_bootmae(**kwargs)


def test_unknown_decoder_setting(make_bootmae):
    with pytest.raises(TypeError, match='heads'):
        make_bootmae(feature_decoder=dict(heads=3))


# Gradients and the momentum encoder


def test_who_gets_a_gradient(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    losses = model.loss(images(), samples(draw_ids_shuffle(model)))
    total, log = model.parse_losses(losses)
    assert total == losses['loss_pixel'] + losses['loss_feature']
    assert set(log) == {'loss', 'loss_pixel', 'loss_feature', 'feature_error'}
    total.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert with_gradient | without == set(dict(model.named_parameters()))
    positions = {f'{part}.pos_embed' for part in ('backbone', 'pixel_decoder', 'feature_decoder')}
    assert without == positions | {name for name, _ in model.named_parameters() if name.startswith('momentum.')}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('used, unused', [('loss_pixel', 'feature_decoder'), ('loss_feature', 'pixel_decoder')])
def test_each_loss_trains_its_own_decoder(make_bootmae, draw_ids_shuffle, used, unused):
    model = make_bootmae()
    model.loss(images(), samples(draw_ids_shuffle(model)))[used].backward()
    assert all(p.grad is None for p in getattr(model, unused).parameters())
    assert model.backbone.cls_token.grad.abs().max() > 0


def test_starts_equal():
    torch.manual_seed(3)
    model = MODELS.build(
        dict(
            type='BootMAE',
            backbone=dict(type='PlainViT', arch=dict(embed_dims=24, depth=2, num_heads=4), img_size=32, patch_size=8),
        )
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.init_weights()
    online, momentum = (dict(m.named_parameters()) for m in (model.backbone, model.momentum))
    assert set(online) - set(momentum) == {'norm.weight', 'norm.bias'}
    assert all(torch.equal(momentum[name], online[name]) for name in momentum)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert 'backbone.blocks.0.mlp.fc1.weight' in changed
    assert 'pixel_decoder.mask_token' in changed
    assert not any('pos_embed' in name for name in changed)


def test_a_second_start_changes_nothing():
    model = MODELS.build(
        dict(
            type='BootMAE',
            backbone=dict(type='PlainViT', arch=dict(embed_dims=24, depth=2, num_heads=4), img_size=32, patch_size=8),
        )
    )
    model.init_weights()
    model.backbone.cls_token.data.fill_(1.0)  # training has moved the online encoder away
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(model.momentum.cls_token, model.backbone.cls_token)


@pytest.mark.parametrize('decay', [0.0, 0.3, 0.999, 1.0])
def test_update_by_hand(make_bootmae, decay):
    model = make_bootmae()
    online, before = (copy.deepcopy(dict(m.named_parameters())) for m in (model.backbone, model.momentum))
    model.update_momentum(decay)
    for name, weight in model.momentum.named_parameters():
        assert_close(weight.data, decay * before[name].data + (1 - decay) * online[name].data, rtol=1e-12, atol=1e-15)
        if decay not in (0.0, 1.0) and name != 'pos_embed':
            assert not torch.equal(weight, before[name])
    for name, weight in model.backbone.named_parameters():
        assert torch.equal(weight, online[name]), 'the online encoder stays'


def test_momentum_encoder_is_in_the_checkpoint(make_bootmae):
    model, other = make_bootmae(), make_bootmae(seed=1)
    state = model.state_dict()
    names = {name.removeprefix('momentum.') for name in state if name.startswith('momentum.')}
    backbone = {name.removeprefix('backbone.') for name in state if name.startswith('backbone.')}
    assert names == backbone - {'norm.weight', 'norm.bias'}
    assert 'feature_weight' not in state, 'it belongs to the epoch, not to the weights'
    other.load_state_dict(state)
    ids_shuffle = torch.arange(16).expand(2, -1)
    assert torch.equal(other.predict(images(), ids_shuffle).targets, model.predict(images(), ids_shuffle).targets)


def test_momentum_encoder_stays_in_eval_mode(make_bootmae):
    model = make_bootmae(backbone=dict(drop_path_rate=0.5))
    assert model.train() is model
    assert model.backbone.training
    assert not any(module.training for module in model.momentum.modules())
    ids_shuffle = torch.arange(16).expand(2, -1)
    first, second = model.predict(images(), ids_shuffle), model.predict(images(), ids_shuffle)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.features, second.features), 'the online encoder drops paths'
    assert not first.targets.requires_grad


# What is seen


def test_targets_are_the_momentum_features_of_the_whole_image(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    ids_shuffle = draw_ids_shuffle(model)
    vit = model.momentum
    tokens = vit.embed(vit.patch_embed.patchify(images()), vit.pos_embed[:, 1:])
    whole = vit.forward_blocks(tokens)[0][:, 1:]  # without the final norm
    out = model.predict(images(), ids_shuffle)
    assert torch.equal(out.ids_masked, ids_shuffle[:, VISIBLE:])
    assert_close(out.targets, whole.gather(1, out.ids_masked[..., None].expand(-1, -1, 24)))
    patches = model.backbone.patch_embed.patchify(images())
    assert torch.equal(out.patches, patches.gather(1, out.ids_masked[..., None].expand(-1, -1, 192)))


def test_masked_pixels_reach_the_targets_only(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    ids_shuffle = draw_ids_shuffle(model)
    before = model.predict(images(), ids_shuffle)
    after = model.predict(change_patches(images(), ids_shuffle[:, VISIBLE:]), ids_shuffle)
    assert torch.equal(after.pixels, before.pixels)
    assert torch.equal(after.features, before.features)
    assert ((after.targets - before.targets).abs().amax(-1) > 1e-3).all()
    assert ((after.patches - before.patches).abs().amax(-1) > 1e-3).all()


def test_visible_pixels_reach_everything(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    ids_shuffle = draw_ids_shuffle(model)
    before = model.predict(images(), ids_shuffle)
    after = model.predict(change_patches(images(), ids_shuffle[:, :1]), ids_shuffle)
    for key in ('pixels', 'features', 'targets'):
        assert ((getattr(after, key) - getattr(before, key)).abs().amax(-1) > 1e-6).all(), key
    assert torch.equal(after.patches, before.patches)


def test_images_of_a_batch_do_not_mix(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    ids_shuffle = draw_ids_shuffle(model, 3)
    whole = model.predict(images(3), ids_shuffle)
    alone = model.predict(images(3)[1:2], ids_shuffle[1:2])
    for key in ('pixels', 'features', 'targets', 'weights'):
        assert_close(getattr(alone, key), getattr(whole, key)[1:2])


@pytest.mark.parametrize('part', [slice(0, VISIBLE), slice(VISIBLE, None)], ids=['visible', 'masked'])
def test_order_within_a_part_changes_no_loss(make_bootmae, draw_ids_shuffle, part):
    model = make_bootmae()
    ids_shuffle = draw_ids_shuffle(model)
    other = ids_shuffle.clone()
    other[:, part] = other[:, part].flip(1)
    ours, theirs = (model.loss(images(), samples(x)) for x in (ids_shuffle, other))
    for key in ours:
        assert_close(ours[key], theirs[key], rtol=1e-12, atol=0)
    swapped = ids_shuffle.clone()
    swapped[:, [0, -1]] = ids_shuffle[:, [-1, 0]]  # another mask
    assert abs(model.loss(images(), samples(swapped))['loss_pixel'] - ours['loss_pixel']) > 1e-6


@pytest.mark.parametrize(
    'name, result, other', [('pixel_decoder', 'pixels', 'features'), ('feature_decoder', 'features', 'pixels')]
)
def test_a_planted_mask_token_shows_up_at_masked_positions_only(make_bootmae, draw_ids_shuffle, name, result, other):
    model = make_bootmae()
    decoder, ids_shuffle, seen = getattr(model, name), draw_ids_shuffle(model), []
    before = model.predict(images(), ids_shuffle)
    decoder.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    decoder.mask_token.data.fill_(10_000)
    after = model.predict(images(), ids_shuffle)
    planted = (seen[0] > 9_000).all(dim=-1)
    assert planted.tolist() == [[False] * (1 + VISIBLE) + [True] * MASKED] * 2
    assert seen[0][:, : 1 + VISIBLE].abs().max() < 100
    assert_close(
        seen[0][:, 1 + VISIBLE :] - 10_000, decoder.pos_embed[0, 1:][ids_shuffle[:, VISIBLE:]], rtol=0, atol=1e-9
    )
    assert ((getattr(after, result) - getattr(before, result)).abs().amax(-1) > 1e-3).all()
    assert torch.equal(getattr(after, other), getattr(before, other))
    assert torch.equal(after.targets, before.targets)


# Masks and the loss


def test_masks_come_from_the_pipeline(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    ids_shuffle = draw_ids_shuffle(model)
    assert torch.equal(model.batch_ids_shuffle(samples(ids_shuffle), 2, torch.device('cpu')), ids_shuffle)


@pytest.mark.parametrize('data_samples', [None, [DataSample(), DataSample()]])
def test_masks_are_drawn_without_a_pipeline(make_bootmae, data_samples):
    model = make_bootmae()
    np.random.seed(4)
    ours = model.batch_ids_shuffle(data_samples, 2, torch.device('cpu'))
    rng = np.random.RandomState(4)
    assert ours.tolist() == [model.masking.draw_ids_shuffle(rng).tolist() for _ in range(2)]


@pytest.mark.parametrize('shape', [(2, 17), (2, 15), (1, 16), (3, 16)])
def test_masks_that_do_not_fit(make_bootmae, shape):
    ids_shuffle = torch.arange(shape[1]).expand(shape)
    with pytest.raises(ValueError, match=r'ids_shuffle of shape .* does not fit 2 images of \(4, 4\) patches'):
        make_bootmae().loss(images(), samples(ids_shuffle))


def test_wrong_image_size(make_bootmae):
    with pytest.raises(ValueError, match=r'images of \(40, 32\) pixels given to a ViT built with img_size=\(32, 32\)'):
        make_bootmae().loss(images(size=(40, 32)))


def test_feature_weight(make_bootmae, draw_ids_shuffle):
    model = make_bootmae()
    data = samples(draw_ids_shuffle(model))
    full = model.loss(images(), data)
    assert full['loss_feature'] == full['feature_error']
    model.feature_weight.fill_(0.25)
    part = model.loss(images(), data)
    assert part['loss_feature'] == 0.25 * full['feature_error']
    assert part['feature_error'] == full['feature_error']
    assert part['loss_pixel'] == full['loss_pixel']
    assert not part['feature_error'].requires_grad


def test_weighting(make_bootmae, draw_ids_shuffle):
    weighted, plain = make_bootmae(), make_bootmae(weighted=False)
    ids_shuffle = draw_ids_shuffle(weighted)
    assert (plain.predict(images(), ids_shuffle).weights == 1).all()
    weights = weighted.predict(images(), ids_shuffle).weights
    assert weights.min() >= 1 + 1 / 9 - 1e-6
    assert weights.max() <= 2
    assert (
        weighted.loss(images(), samples(ids_shuffle))['loss_pixel']
        > plain.loss(images(), samples(ids_shuffle))['loss_pixel']
    )


def test_forward_modes(make_bootmae, draw_ids_shuffle):
    model = make_bootmae().eval()
    data = samples(draw_ids_shuffle(model))
    losses = model(images(), data, mode='loss')
    assert {key: value.item() for key, value in losses.items()} == {
        key: value.item() for key, value in model.loss(images(), data).items()
    }
    assert torch.equal(model(images(), mode='tensor')[0], model.backbone(images())[0])


# Other shapes


@pytest.mark.parametrize('img_size, patch_size', [((16, 32), 4), (24, (8, 4)), ((32, 8), (4, 2)), (16, 8)])
def test_other_shapes(make_bootmae, img_size, patch_size):
    model = make_bootmae(backbone=dict(img_size=img_size, patch_size=patch_size), masking={})
    losses = model.loss(images(size=model.backbone.img_size))
    sum(losses[key] for key in ('loss_pixel', 'loss_feature')).backward()
    out = model.predict(images(size=model.backbone.img_size), torch.arange(model.masking.num_patches).expand(2, -1))
    size = model.backbone.patch_size
    assert out.pixels.shape == (2, model.masking.num_masked, 3 * size[0] * size[1])
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_other_channels(make_bootmae):
    model = make_bootmae(backbone=dict(in_channels=2))
    losses = model.loss(images()[:, :2])
    assert losses['loss_pixel'] > 0
    assert model.pixel_decoder.head.weight.shape[1] == 2
