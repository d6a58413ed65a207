"""Attention with uneven heads, the decoder block and the two decoders."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bootmae.models.decoder import DecoderBlock, PixelHead, TargetAwareDecoder
from bootmae.models.layers import CrossAttention, SelfAttention, head_width
from bootmae.models.positions import sincos_positions

GRID = (3, 4)


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def make(randomize):
    """``make(module)``: the module with random weights, in float64."""
    return lambda module: randomize(module).double().eval()


@pytest.fixture
def make_decoder(make):
    def build(head=None, **kwargs):
        settings = dict(encoder_dim=20, grid=GRID, embed_dims=16, depth=2, num_heads=3) | kwargs
        return make(TargetAwareDecoder(head=head or nn.Linear(settings['embed_dims'], 7), **settings))

    return build


def softmax_by_hand(q, k, v, num_heads):
    """Attention by loops over heads and queries; all tensors are (T, I)."""
    q, k, v = q.detach(), k.detach(), v.detach()
    width, out = q.shape[1] // num_heads, torch.zeros(len(q), q.shape[1], dtype=q.dtype)
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            weights = [math.exp(float(q[i, part] @ k[j, part]) / math.sqrt(width)) for j in range(len(k))]
            out[i, part] = sum(w / sum(weights) * v[j, part] for j, w in enumerate(weights))
    return out


# Attention


@pytest.mark.parametrize('dim, num_heads, width', [(512, 12, 42), (768, 12, 64), (20, 6, 3), (7, 7, 1), (7, 1, 7)])
def test_head_width(dim, num_heads, width):
    assert head_width(dim, num_heads) == width
    inner = width * num_heads
    attn = SelfAttention(dim, num_heads)
    assert attn.qkv.weight.shape == (3 * inner, dim)
    assert attn.proj.weight.shape == (dim, inner)
    assert attn.q_bias.shape == attn.v_bias.shape == (inner,)
    assert CrossAttention(dim, 9, num_heads).kv.weight.shape == (2 * inner, 9)


@pytest.mark.parametrize('num_heads', [0, -1, 17])
def test_impossible_heads(num_heads):
    with pytest.raises(ValueError, match=f'num_heads={num_heads} does not fit a width of 16: choose 1..16'):
        SelfAttention(16, num_heads)
    with pytest.raises(ValueError, match=f'num_heads={num_heads}'):
        CrossAttention(16, 4, num_heads)


@pytest.mark.parametrize('num_heads', [1, 3, 4])
def test_self_attention_by_hand(make, num_heads):
    attn, x = make(SelfAttention(16, num_heads)), tokens(1, 5, 16)
    q_weight, k_weight, v_weight = attn.qkv.weight.chunk(3)
    expected = softmax_by_hand(
        x[0] @ q_weight.T + attn.q_bias, x[0] @ k_weight.T, x[0] @ v_weight.T + attn.v_bias, num_heads
    )
    assert_close(attn(x)[0], attn.proj(expected))
    assert_close(attn(x, 2)[0], attn.proj(expected[-2:]))


@pytest.mark.parametrize('num_heads', [1, 3, 4])
def test_cross_attention_by_hand(make, num_heads):
    attn, x, context = make(CrossAttention(16, 20, num_heads)), tokens(1, 3, 16), tokens(1, 6, 20, seed=1)
    k_weight, v_weight = attn.kv.weight.chunk(2)
    expected = softmax_by_hand(
        x[0] @ attn.q.weight.T + attn.q_bias, context[0] @ k_weight.T, context[0] @ v_weight.T + attn.v_bias, num_heads
    )
    assert_close(attn(x, context)[0], attn.proj(expected))


def test_a_key_bias_would_cancel(make, monkeypatch):
    attn, x = make(SelfAttention(16, 3)), tokens(2, 5, 16)
    without, key_bias, linear = attn(x), tokens(15, seed=2), nn.functional.linear

    def with_key_bias(inputs, weight, bias=None):
        if bias is not None and bias.shape == (45,):
            bias = bias + torch.cat((torch.zeros_like(key_bias), key_bias, torch.zeros_like(key_bias)))
        return linear(inputs, weight, bias)

    monkeypatch.setattr(nn.functional, 'linear', with_key_bias)
    assert_close(attn(x), without, rtol=1e-12, atol=1e-12)


# Block and heads


def test_block_by_hand(make):
    block, x, context = make(DecoderBlock(16, 20, 3)), tokens(2, 5, 16), tokens(2, 4, 20, seed=1)
    expected = x + block.self_attn(block.self_norm(x))
    expected = expected + block.cross_attn(block.cross_norm(expected), block.context_norm(context))
    expected = expected + block.mlp(block.mlp_norm(expected))
    assert_close(block(x, context), expected)


@pytest.mark.parametrize('num_queries', [1, 3, 5])
def test_last_queries_alone(make, num_queries):
    block, x, context = make(DecoderBlock(16, 20, 3)), tokens(2, 5, 16), tokens(2, 4, 20, seed=1)
    assert_close(block(x, context, num_queries), block(x, context)[:, -num_queries:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('channels, patch', [(3, (4, 4)), (1, (2, 3)), (4, (5, 2))])
def test_pixel_head_is_the_transposed_convolution(make, channels, patch):
    head, x = make(PixelHead(16, channels, patch)), tokens(2, 12, 16)
    image = nn.ConvTranspose2d.forward(head, x.transpose(1, 2).unflatten(2, GRID))
    assert image.shape == (2, channels, GRID[0] * patch[0], GRID[1] * patch[1])
    ours = head(x)
    for n in range(12):
        row, column = n // GRID[1] * patch[0], n % GRID[1] * patch[1]
        assert_close(ours[:, n], image[:, :, row : row + patch[0], column : column + patch[1]].flatten(1))


# Decoder


def in_image_order(decoder, latent, context, ids_masked):
    """Run all tokens through all blocks, in image order: (B, N, E) before the head."""
    ids_visible = torch.stack([torch.tensor(sorted(set(range(12)) - set(ids.tolist()))) for ids in ids_masked])
    x = decoder.mask_token + decoder.pos_embed[:, 1:].expand(len(latent), -1, -1)
    embedded = decoder.embed(latent)
    x = x.scatter(1, ids_visible[..., None].expand(-1, -1, x.shape[-1]), embedded[:, 1:])
    x = torch.cat((embedded[:, :1], x), dim=1)
    for block in decoder.blocks:
        x = block(x, context)
    return decoder.norm(x)[:, 1:]


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_equals_the_decoder_in_image_order(make_decoder, depth):
    decoder = make_decoder(depth=depth)
    ids_masked = torch.tensor([[7, 0, 2, 11, 4], [3, 9, 1, 10, 8]])
    latent, context = tokens(2, 8, 20), tokens(2, 8, 20, seed=1)
    expected = decoder.head(in_image_order(decoder, latent, context, ids_masked))
    expected = expected.gather(1, ids_masked[..., None].expand(-1, -1, 7))
    assert_close(decoder(latent, context, ids_masked), expected, rtol=1e-10, atol=1e-10)


def test_order_of_masked_patches_is_the_order_of_predictions(make_decoder):
    decoder, latent, context = make_decoder(), tokens(1, 8, 20), tokens(1, 8, 20, seed=1)
    ids, order = torch.tensor([[7, 0, 2, 11, 4]]), [3, 1, 4, 0, 2]
    assert_close(decoder(latent, context, ids[:, order]), decoder(latent, context, ids)[:, order])


def test_predictions_differ_by_position_alone(make_decoder):
    decoder, latent, context = make_decoder(), tokens(1, 8, 20), tokens(1, 8, 20, seed=1)
    ids = torch.tensor([[7, 0, 2, 11, 4]])
    assert decoder(latent, context, ids)[0].unique(dim=0).shape[0] == 5
    decoder.pos_embed.data.zero_()
    same = decoder(latent, context, ids)[0]
    assert_close(same, same[:1].expand_as(same))


def test_both_inputs_are_used(make_decoder):
    decoder, latent, context = make_decoder(), tokens(1, 8, 20), tokens(1, 8, 20, seed=1)
    ids = torch.tensor([[7, 0, 2, 11, 4]])
    before = decoder(latent, context, ids)
    for index in range(8):  # each token of each
        for changed in (
            (latent.index_fill(1, torch.tensor([index]), 2.0), context),
            (latent, context.index_fill(1, torch.tensor([index]), 2.0) * torch.linspace(0, 1, 20)),
        ):
            assert (decoder(*changed, ids) - before).abs().max() > 1e-6


def test_every_parameter_gets_a_gradient(make_decoder):
    decoder = make_decoder()
    decoder(tokens(2, 8, 20), tokens(2, 8, 20, seed=1), torch.tensor([[1, 2, 3], [4, 5, 6]])).square().sum().backward()
    without = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == ['pos_embed']
    assert not decoder.pos_embed.requires_grad


def test_a_decoder_needs_a_block():
    with pytest.raises(ValueError, match='at least one block, not depth=0'):
        TargetAwareDecoder(20, GRID, 16, 0, 3, head=nn.Identity())


def test_starting_weights():
    decoder = TargetAwareDecoder(encoder_dim=64, grid=GRID, embed_dims=96, depth=1, num_heads=5, head=nn.Linear(96, 32))
    decoder.init_weights()
    attn = decoder.blocks[0].self_attn
    inner = 95
    for weight, fan in (
        (attn.qkv.weight, inner + 96),
        (decoder.blocks[0].cross_attn.kv.weight, 2 * inner + 64),
        (decoder.embed.weight, 96 + 64),
        (decoder.head.weight, 96 + 32),
    ):
        bound = math.sqrt(6 / fan)
        assert bound * 0.95 < weight.abs().max() <= bound
    assert 0.01 < decoder.mask_token.abs().max() <= 0.02
    assert decoder.mask_token.std().item() == pytest.approx(0.0108, rel=0.25)  # normal of 0.02, cut at 0.02
    assert torch.equal(decoder.pos_embed.data, sincos_positions(GRID, 96))
    assert not any(bias.any() for bias in (attn.q_bias, attn.v_bias, decoder.embed.bias, decoder.norm.bias))
