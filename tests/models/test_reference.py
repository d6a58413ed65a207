"""BootMAE against a slow implementation straight from the description: all tokens, in image order, plain loops.

The product sorts tokens by the mask order, works out only what enters the loss, and embeds patches as a linear map.
None of these short cuts is taken here. Letters: B batch, N patches, V visible, D encoder width, E decoder width.
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close


def norm(weights, name, x, eps=1e-6):
    centered = x - x.mean(dim=-1, keepdim=True)
    return (
        centered / (centered.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weights[f'{name}.weight']
        + weights[f'{name}.bias']
    )


def plain_norm(x, eps):
    centered = x - x.mean(dim=-1, keepdim=True)
    return centered / (centered.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def linear(weights, name, x):
    return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']


def heads_of(q, k, v, num_heads):
    """Softmax attention with a loop over heads."""
    out, width = [], q.shape[-1] // num_heads
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / width**0.5
        out.append((logits.exp() / logits.exp().sum(dim=-1, keepdim=True)) @ v[..., part])
    return torch.cat(out, dim=-1)


def self_attention(weights, name, x, num_heads):
    q_weight, k_weight, v_weight = weights[f'{name}.qkv.weight'].chunk(3)
    q, k, v = x @ q_weight.T + weights[f'{name}.q_bias'], x @ k_weight.T, x @ v_weight.T + weights[f'{name}.v_bias']
    return linear(weights, f'{name}.proj', heads_of(q, k, v, num_heads))


def cross_attention(weights, name, x, context, num_heads):
    k_weight, v_weight = weights[f'{name}.kv.weight'].chunk(2)
    q = x @ weights[f'{name}.q.weight'].T + weights[f'{name}.q_bias']
    k, v = context @ k_weight.T, context @ v_weight.T + weights[f'{name}.v_bias']
    return linear(weights, f'{name}.proj', heads_of(q, k, v, num_heads))


def mlp(weights, name, x):
    hidden = linear(weights, f'{name}.fc1', x)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return linear(weights, f'{name}.fc2', hidden)


def encode(weights, name, images, visible, num_heads, depth):
    """Outputs of all blocks (B, 1 + V, D) for the ``visible`` patches (B, V)."""
    projection = weights[f'{name}.patch_embed.proj.weight']
    tokens = (
        torch.nn.functional.conv2d(
            images, projection, weights[f'{name}.patch_embed.proj.bias'], stride=projection.shape[2:]
        )
        .flatten(2)
        .transpose(1, 2)
    )
    tokens = torch.cat((weights[f'{name}.cls_token'].expand(len(images), -1, -1), tokens), dim=1)
    tokens = tokens + weights[f'{name}.pos_embed']
    x = torch.stack([tokens[b, [0, *(1 + visible[b])]] for b in range(len(images))])
    outputs = []
    for k in range(depth):
        block = f'{name}.blocks.{k}'
        x = x + self_attention(weights, f'{block}.attn', norm(weights, f'{block}.norm1', x), num_heads)
        x = x + mlp(weights, f'{block}.mlp', norm(weights, f'{block}.norm2', x))
        outputs.append(x)
    return outputs


def decode(weights, name, latent, context, visible, num_heads, depth):
    """(B, 1 + N, E) in image order, normed."""
    positions, mask_token = weights[f'{name}.pos_embed'][0], weights[f'{name}.mask_token'][0, 0]
    embedded, x = linear(weights, f'{name}.embed', latent), []
    for b in range(len(latent)):
        place = {int(patch): 1 + index for index, patch in enumerate(visible[b])}
        x.append(
            torch.stack(
                [embedded[b, 0]]
                + [
                    embedded[b, place[patch]] if patch in place else mask_token + positions[1 + patch]
                    for patch in range(len(positions) - 1)
                ]
            )
        )
    x = torch.stack(x)
    for k in range(depth):
        block = f'{name}.blocks.{k}'
        x = x + self_attention(weights, f'{block}.self_attn', norm(weights, f'{block}.self_norm', x), num_heads)
        x = x + cross_attention(
            weights,
            f'{block}.cross_attn',
            norm(weights, f'{block}.cross_norm', x),
            norm(weights, f'{block}.context_norm', context),
            num_heads,
        )
        x = x + mlp(weights, f'{block}.mlp', norm(weights, f'{block}.mlp_norm', x))
    return norm(weights, f'{name}.norm', x)


def loss_weights(mask):
    """Token weights of a mask (rows, columns) of zeros and ones."""
    rows, columns = mask.shape
    out = torch.zeros(rows, columns, dtype=torch.float64)
    for r, c in mask.nonzero().tolist():
        around = mask[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2]
        out[r, c] = 1 + around.sum() / 9
    return out


def reference(model, weights, images, ids_shuffle):
    """Predictions as images, features and targets for all patches, and both losses."""
    vit, num_visible = model.backbone, model.masking.num_visible
    visible = [row[:num_visible] for row in ids_shuffle]
    everything = [torch.arange(ids_shuffle.shape[1])] * len(ids_shuffle)
    outputs = encode(weights, 'backbone', images, visible, vit.num_heads, vit.depth)
    latent = norm(weights, 'backbone.norm', outputs[-1])
    targets = encode(weights, 'momentum', images, everything, vit.num_heads, vit.depth)[-1][:, 1:].detach()
    decoded = []
    for name, tap in zip(('pixel_decoder', 'feature_decoder'), model.taps, strict=True):
        decoder = getattr(model, name)
        decoded.append(
            decode(
                weights, name, latent, outputs[tap], visible, decoder.blocks[0].self_attn.num_heads, len(decoder.blocks)
            )[:, 1:]
        )
    rows, columns = vit.grid
    head = weights['pixel_decoder.head.weight']
    pixels = torch.nn.functional.conv_transpose2d(
        decoded[0].transpose(1, 2).unflatten(2, vit.grid),
        head,
        weights['pixel_decoder.head.bias'],
        stride=head.shape[2:],
    )
    features = linear(weights, 'feature_decoder.head', decoded[1])

    (ph, pw), pixel_loss, feature_loss = vit.patch_size, 0.0, 0.0
    for b, order in enumerate(ids_shuffle):
        masked = order[num_visible:]
        mask = torch.zeros(rows * columns, dtype=torch.float64)
        mask[masked] = 1
        weight = loss_weights(mask.view(rows, columns)).flatten()
        for patch in masked.tolist():
            r, c = divmod(patch, columns)
            window = np.s_[b, :, r * ph : (r + 1) * ph, c * pw : (c + 1) * pw]
            target = plain_norm(images[window].flatten(1), 1e-5)
            pixel_loss = pixel_loss + weight[patch] * (pixels[window].flatten(1) - target).square().mean()
            error = plain_norm(features[b, patch], 1e-6) - plain_norm(targets[b, patch], 1e-6)
            feature_loss = feature_loss + weight[patch] * error.square().mean()
    count = len(ids_shuffle) * model.masking.num_masked
    return pixels, features, targets, pixel_loss / count, feature_loss / count


CASES = {
    'odd heads': dict(backbone=dict(arch=dict(embed_dims=24, depth=3, num_heads=5))),
    'taps as in the paper': dict(pixel_decoder=dict(embed_dims=16, num_heads=4)),
    'deep decoder': dict(
        pixel_decoder=dict(embed_dims=12, num_heads=5, tap=2, depth=3, mlp_ratio=2),
        feature_decoder=dict(depth=1, tap=0),
    ),
    'rectangles': dict(
        backbone=dict(img_size=(32, 40), patch_size=(8, 4)),
        masking=dict(num_masked=27, num_block=20, block_area=(3, 8)),
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_slow_way(make_bootmae, draw_ids_shuffle, case):
    model = make_bootmae(**CASES[case])
    model.feature_weight.fill_(0.3)
    images = torch.randn(2, 3, *model.backbone.img_size, dtype=torch.float64)
    ids_shuffle = draw_ids_shuffle(model)
    weights = {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        for name, value in model.state_dict(keep_vars=True).items()
    }
    pixels, features, targets, pixel_loss, feature_loss = reference(model, weights, images, ids_shuffle)

    out = model.predict(images, ids_shuffle)
    ids = ids_shuffle[:, model.masking.num_visible :, None]
    assert torch.equal(out.ids_masked, ids[..., 0])
    patches = model.backbone.patch_embed.patchify(pixels)
    for ours, theirs in ((out.pixels, patches), (out.features, features), (out.targets, targets)):
        assert_close(ours, theirs.gather(1, ids.expand(-1, -1, theirs.shape[-1])), rtol=1e-9, atol=1e-9)

    model.batch_ids_shuffle = lambda *args: ids_shuffle
    losses = model.loss(images)
    # the weights of the product are float32: 1 + k / 9 is rounded
    assert_close(losses['loss_pixel'], pixel_loss, rtol=1e-7, atol=0)
    assert_close(losses['feature_error'], feature_loss.detach(), rtol=1e-7, atol=0)
    assert_close(losses['loss_feature'], 0.3 * feature_loss, rtol=1e-7, atol=0)

    (losses['loss_pixel'] + losses['loss_feature']).backward()
    (pixel_loss + 0.3 * feature_loss).backward()
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if p.grad is not None} == {
        name for name, value in weights.items() if value.grad is not None
    }
    for name, parameter in named.items():
        if parameter.grad is not None:
            scale = weights[name].grad.abs().max().item()
            assert_close(parameter.grad, weights[name].grad, rtol=1e-6, atol=1e-6 * scale, msg=name)
