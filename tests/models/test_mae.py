"""MAE with the masks and the pixel target of BootMAE, and BootMAE with the target of MAE."""

import numpy as np
import pytest
import torch
from inputs import images, samples
from mmpretrain.models import MAEPretrainHead
from mmpretrain.registry import MODELS
from torch.testing import assert_close

from bootmae.models.mae import PerChannelMAEHead, channel_first
from bootmae.models.masking import BlockMasking
from bootmae.models.objectives import normalize_patches, pixel_loss

ARCH = dict(embed_dims=24, num_layers=1, num_heads=4, feedforward_channels=48)
MASKING = dict(num_masked=11, num_block=8, block_area=(2, 4), max_roll=0)
BACKBONE = dict(type='BlockMaskedMAEViT', arch=ARCH, img_size=32, patch_size=8, masking=MASKING)
LOSS = dict(type='PixelReconstructionLoss', criterion='L2')


def test_block_masks():
    """The encoder sees the patches that BlockMasking leaves visible, in its order, and can restore the image."""
    model = MODELS.build(BACKBONE)
    tokens = torch.arange(16.0).repeat(3, 1).unsqueeze(-1)
    np.random.seed(5)
    visible, mask, ids_restore = model.random_masking(tokens, 0.5)
    np.random.seed(5)
    orders = [BlockMasking((4, 4), **MASKING).draw_ids_shuffle() for _ in range(3)]
    assert visible[..., 0].tolist() == [order[:5].tolist() for order in orders]
    for row, order in zip(mask, orders, strict=True):
        assert row.nonzero().flatten().tolist() == sorted(order[5:].tolist())
    shuffled = torch.from_numpy(np.stack(orders))
    assert torch.equal(shuffled.gather(1, ids_restore), torch.arange(16).expand(3, -1))


def test_block_masked_mae_trains_on_the_masked_patches():
    decoder = dict(embed_dim=24, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    model = MODELS.build(
        dict(
            type='MAE',
            backbone=BACKBONE,
            neck=dict(type='MAEPretrainDecoder', num_patches=16, patch_size=8, **decoder),
            head=dict(type='MAEPretrainHead', norm_pix=True, patch_size=8, loss=LOSS),
        )
    )
    np.random.seed(5)
    loss = model.loss(images().float(), None)['loss']
    np.random.seed(5)
    latent, mask, ids_restore = model.backbone(images().float())
    error = (model.neck(latent, ids_restore) - model.head.construct_target(images().float())).square().mean(-1)
    assert mask.sum(1).tolist() == [11, 11]
    assert_close(loss, (error * mask).sum() / 22)


def test_per_channel_target():
    head = PerChannelMAEHead(LOSS, norm_pix=True, patch_size=8)
    x = images() * torch.tensor([1.0, 20.0, 0.1]).view(3, 1, 1) + 4
    target = head.construct_target(x).unflatten(-1, (64, 3))
    assert_close(target.mean(2), torch.zeros_like(target.mean(2)), rtol=0, atol=1e-9)
    assert_close(target.std(2, unbiased=False), torch.ones_like(target.mean(2)), rtol=0, atol=1e-2)
    blue = x[1, 2, 8:16, 24:32].flatten()  # patch 7 of 4 x 4
    assert_close(target[1, 7, :, 2], (blue - blue.mean()) / (blue.var(unbiased=False) + 1e-5).sqrt())


def test_target_over_all_channels(make_bootmae, draw_ids_shuffle):
    """With per_channel=False, BootMAE learns MAE's target but for the bias of the variance (192 values a patch)."""
    model = make_bootmae(per_channel=False)
    ids_shuffle = draw_ids_shuffle(model)
    out = model.predict(images(), ids_shuffle)
    loss = model.loss(images(), samples(ids_shuffle))['loss_pixel']
    assert loss == pixel_loss(out.pixels, out.patches, out.weights, 1)
    assert loss != pixel_loss(out.pixels, out.patches, out.weights, 3)
    theirs = MAEPretrainHead(LOSS, norm_pix=True, patch_size=8).construct_target(images())
    theirs = theirs.gather(1, out.ids_masked.unsqueeze(-1).expand(-1, -1, 192))
    assert_close(normalize_patches(out.patches, 1), channel_first(theirs, 3) * (192 / 191) ** 0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('weight', [0.0, 0.25])
def test_weight_of_the_pixel_loss(make_bootmae, draw_ids_shuffle, weight):
    model, whole = make_bootmae(pixel_weight=weight), make_bootmae()
    ids_shuffle = draw_ids_shuffle(model)
    ours, theirs = (each.loss(images(), samples(ids_shuffle)) for each in (model, whole))
    assert ours['loss_pixel'] == weight * theirs['loss_pixel']
    assert ours['loss_feature'] == theirs['loss_feature']
    with pytest.raises(ValueError, match='pixel_weight=-1: give'):
        make_bootmae(pixel_weight=-1)
