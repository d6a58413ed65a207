"""Attention of the class token and principal components, compared with the modules, timm and scikit-learn."""

import pytest
import torch
from sklearn.decomposition import PCA
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from bootmae.checkpoints import find_encoder
from bootmae.config.encoder import fit_encoder
from bootmae.models.layers import split_heads
from bootmae.models.positions import resize_positions
from bootmae.transfer import TransferViT
from bootmae.visualization.attention import attention_rows, class_attention, patch_features, principal_components

SMALL = dict(arch=dict(embed_dims=24, depth=2, num_heads=4), img_size=32, patch_size=8)


def images(height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def timm_vit(randomize):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=4, num_classes=7)
    return randomize(vit).double().eval()


@pytest.mark.parametrize('relative', [False, True])
def test_rows_are_what_the_module_computes(randomize, relative):
    """Values weighted by the row give the module's own output for that query."""
    vit = randomize(TransferViT(**SMALL, relative_positions=relative)).double().eval()
    attn, groups = vit.blocks[1].attn, vit.groups((4, 4), torch.device('cpu'))[0][1]
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    v = split_heads(x @ attn.qkv.weight[-24:].T + attn.v_bias, 4)
    for query in (0, 5):
        rows = attention_rows(attn, x, groups[0] if groups else None, query)
        assert_close(rows.sum(-1), torch.ones(2, 4, dtype=torch.float64))
        taken = (rows.unsqueeze(2) @ v).transpose(1, 2).flatten(2)
        assert_close(attn.proj(taken)[:, 0], attn(x, groups=groups)[:, query])


def test_maps_stand_in_image_order(randomize):
    """Windows change the order of the tokens; a first block that does nothing makes both models equal."""
    plain = randomize(TransferViT(**SMALL, layer_scale=1.0)).double().eval()
    windowed = TransferViT(**SMALL, layer_scale=1.0, window_size=3, global_blocks=[1]).double().eval()
    for gamma in (plain.blocks[0].gamma_1, plain.blocks[0].gamma_2):
        gamma.data.zero_()
    windowed.load_state_dict(plain.state_dict())
    maps = class_attention(plain, images(32, 48))
    assert maps.shape == (2, 4, 4, 6)
    assert_close(class_attention(windowed, images(32, 48)), maps)
    blind = TransferViT(**SMALL, window_size=3, global_blocks=[0, 1]).double().eval()
    blind.windowed = [False, True]
    with pytest.raises(ValueError, match=r'block 1 attends within windows.*choose --block from \[0\]'):
        class_attention(blind, images())


@pytest.mark.parametrize('block', [0, 1, -1, None])
def test_features_of_a_timm_file(timm_vit, block):
    model = fit_encoder(find_encoder(timm_vit.state_dict()), (32, 32), block, num_heads=4).double()
    index = 2 if block in (None, -1) else block
    theirs = timm_vit.forward_intermediates(images(), indices=[index], norm=False, intermediates_only=True)[0]
    assert_close(patch_features(model, images()), theirs, rtol=1e-6, atol=1e-9)


def test_other_sizes_and_positions(timm_vit):
    encoder = find_encoder(timm_vit.state_dict())
    model = fit_encoder(encoder, (32, 64), num_heads=4)
    assert torch.equal(model.pos_embed, resize_positions(encoder.state['pos_embed'], (4, 4), (4, 8)).float())
    assert class_attention(model, images(32, 64).float()).shape == (2, 4, 4, 8)


def test_components():
    scales = torch.linspace(1, 6, 6, dtype=torch.float64).view(6, 1, 1)
    features = torch.randn(3, 6, 4, 5, dtype=torch.float64) * scales + 100
    found, shares = principal_components(features)
    flat = features.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    theirs = PCA(3, svd_solver='full').fit(flat)
    weights = torch.from_numpy(theirs.components_)
    signs = weights.gather(1, weights.abs().argmax(1, keepdim=True)).sign().T
    assert_close(found.reshape(-1, 3), torch.from_numpy(theirs.transform(flat)) * signs)
    assert_close(torch.tensor(shares), torch.from_numpy(theirs.explained_variance_ratio_).float())
    turned = principal_components(-features)[0]
    assert_close(turned, -found)


def test_fewer_directions_than_components():
    features = torch.arange(4.0).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    found, shares = principal_components(features)
    assert shares[0] == pytest.approx(1)
    assert shares[2] == 0
    assert not found[..., 2].any()
    assert principal_components(torch.ones(1, 4, 2, 2))[1] == [0, 0, 0]
