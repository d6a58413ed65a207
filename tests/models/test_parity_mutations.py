"""Each likely mistake in the method makes the comparison with the golden files fail."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models import MAEPretrainDecoder, MAEPretrainHead, MAEViT
from mutations import mutated, with_kwargs
from torch.nn import functional as F

from bootmae.commands import parity
from bootmae.commands.parity import TOLERANCE, compare
from bootmae.engine.optimizers import layer_decay
from bootmae.models import bootmae as algorithm
from bootmae.models import decoder, layers, objectives
from bootmae.models.bootmae import BootMAE
from bootmae.models.decoder import TargetAwareDecoder
from bootmae.models.vit import PlainViT

SQUARE, ODD_HEADS, PLAIN_LOSS, FINETUNE, MAE, MAE_PIXELS = (
    f'compact_{name}.npz'
    for name in ('square', 'odd_heads', 'plain_loss', 'finetune', 'mae_square', 'mae_plain_pixels')
)


def loss_without_target_norm(prediction, target, weights):
    prediction = F.layer_norm(prediction, prediction.shape[-1:], eps=1e-6)
    return objectives.weighted_error(prediction, target, weights)


def loss_without_prediction_norm(prediction, target, weights):
    return objectives.weighted_error(prediction, F.layer_norm(target, target.shape[-1:], eps=1e-6), weights)


def unbiased_pixels(patches, channels=3):
    x = patches.unflatten(-1, (channels, -1))
    return ((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=True) + 1e-5).sqrt()).flatten(-2)


def pixels_normalized_over_channels(patches, channels=3):
    return F.layer_norm(patches, patches.shape[-1:], eps=1e-5)


def normed_taps(forward_blocks):
    def forward(self, x, taps=(), num_queries=None):
        x, outputs = forward_blocks(self, x, taps, num_queries)
        return x, [self.norm(output) for output in outputs]

    return forward


def normed_momentum(momentum_features):
    return lambda self, patches, positions: self.backbone.norm(momentum_features(self, patches, positions))


def blind_momentum(momentum_features):
    """The momentum encoder sees only the masked patches."""
    return lambda self, patches, positions: momentum_features(
        self, patches[:, self.masking.num_visible :], positions[:, self.masking.num_visible :]
    )


def unnormed_latent(forward):
    """The decoders embed the tapped block, not the normed output of the encoder."""
    return lambda self, latent, context, ids: forward(self, context, context, ids)


def latent_as_context(forward):
    """The decoders' cross-attention reads the encoder's output, not the tapped block."""
    return lambda self, latent, context, ids: forward(self, latent, latent, ids)


def swapped_taps(build):
    def swapped(meta):
        model = build(meta)
        model.taps = model.taps[::-1]
        return model

    return swapped


def visible_positions_in_decoder(monkeypatch):
    seen, predict, forward = {}, BootMAE.predict, TargetAwareDecoder.forward

    def predicting(self, images, ids_shuffle):
        seen['visible'] = ids_shuffle[:, : self.masking.num_visible]
        return predict(self, images, ids_shuffle)

    def decoding(self, latent, context, ids_masked):
        positions = self.pos_embed[0, 1:][seen['visible']]
        embed = self.embed
        try:
            self.embed = torch.nn.Identity()
            x = embed(latent)
            return forward(self, torch.cat((x[:, :1], x[:, 1:] + positions), dim=1), context, ids_masked)
        finally:
            self.embed = embed

    monkeypatch.setattr(BootMAE, 'predict', predicting)
    monkeypatch.setattr(TargetAwareDecoder, 'forward', decoding)


def momentum_before_step(monkeypatch):
    build, update, step = parity.build_bootmae, BootMAE.update_momentum, OptimWrapper.step
    models = []

    def building(meta):
        models.append(build(meta))
        return models[-1]

    def stepping(self, **kwargs):
        update(models[-1], parity.EMA_DECAY)
        step(self, **kwargs)

    monkeypatch.setattr(parity, 'build_bootmae', building)
    monkeypatch.setattr(OptimWrapper, 'step', stepping)
    monkeypatch.setattr(BootMAE, 'update_momentum', lambda self, decay: None)


def swapped_biases(forward):
    def swapped(self, *args):
        self.q_bias, self.v_bias = self.v_bias, self.q_bias
        try:
            return forward(self, *args)
        finally:
            self.q_bias, self.v_bias = self.v_bias, self.q_bias

    return swapped


def scale_of_uneven_heads(attend):
    """Softmax scale from width / heads instead of the width of a head."""

    def attending(q, k, v, num_heads):
        inner = q.shape[-1]
        factor = (20 / num_heads / (inner // num_heads)) ** -0.5 if inner == 18 else 1.0
        return attend(q * factor, k, v, num_heads)

    return attending


def undecayed(part):
    return lambda decays: lambda name, parameter, **how: decays(name, parameter, **how) and not name.endswith(part)


def decayed(part):
    return lambda decays: lambda name, parameter, **how: decays(name, parameter, **how) or name.endswith(part)


def unused_feature_weight(loss):
    def losses(self, *args):
        out = loss(self, *args)
        return out | dict(loss_feature=out['loss_feature'] / self.feature_weight)

    return losses


def channel_first(patchify):
    """The pixels of a patch in BootMAE's order, channel by channel."""
    return lambda self, images: patchify(self, images).unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)


def biased_variance(construct_target):
    def biased(self, images):
        target = self.patchify(images)
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True, unbiased=False)
        return (target - mean) / (variance + 1e-6) ** 0.5

    return biased


def decoder_without_positions(forward):
    def forwarding(self, *args):
        self.decoder_pos_embed.data.zero_()
        return forward(self, *args)

    return forwarding


def trained_positions(forward):
    def forwarding(self, *args):
        self.pos_embed.requires_grad_(True)
        return forward(self, *args)

    return forwarding


MUTATIONS = {
    # name: (file, the result that must go wrong, mutation)
    'neighbors divided by those inside': (
        SQUARE,
        'token weights',
        mutated(objectives.F, 'avg_pool2d', with_kwargs(count_include_pad=False)),
    ),
    'weighting on': (PLAIN_LOSS, 'token weights', mutated(BootMAE, '__init__', with_kwargs(weighted=True))),
    'weighting off': (SQUARE, 'loss', mutated(BootMAE, '__init__', with_kwargs(weighted=False))),
    'mean over weights instead of patches': (
        SQUARE,
        'pixel loss',
        mutated(objectives, 'weighted_error', lambda f: lambda p, t, w: f(p, t, w) * w.numel() / w.sum()),
    ),
    'targets without LayerNorm': (
        SQUARE,
        'feature loss',
        mutated(algorithm, 'feature_loss', lambda _: loss_without_target_norm),
    ),
    'feature predictions without LayerNorm': (
        SQUARE,
        'feature loss',
        mutated(algorithm, 'feature_loss', lambda _: loss_without_prediction_norm),
    ),
    'unbiased variance of pixels': (
        SQUARE,
        'pixel loss',
        mutated(objectives, 'normalize_patches', lambda _: unbiased_pixels),
    ),
    'pixels normalized over all channels': (
        SQUARE,
        'pixel loss',
        mutated(objectives, 'normalize_patches', lambda _: pixels_normalized_over_channels),
    ),
    'pixel eps': (SQUARE, 'pixel loss', mutated(objectives, 'PIXEL_EPS', lambda _: 1e-6)),
    'feature eps': (SQUARE, 'feature loss', mutated(objectives, 'FEATURE_EPS', lambda _: 1e-5)),
    'LayerNorm eps': (SQUARE, 'feature prediction', mutated(layers, 'LAYER_NORM_EPS', lambda _: 1e-5)),
    'tanh GELU': (SQUARE, 'pixel prediction', mutated(layers.F, 'gelu', with_kwargs(approximate='tanh'))),
    'final norm before the tap': (SQUARE, 'pixel prediction', mutated(PlainViT, 'forward_blocks', normed_taps)),
    'taps swapped': (SQUARE, 'feature prediction', mutated(parity, 'build_bootmae', swapped_taps)),
    'decoder reads the output, not the tap': (
        ODD_HEADS,
        'pixel prediction',
        mutated(TargetAwareDecoder, 'forward', latent_as_context),
    ),
    'decoder embeds the tap, not the output': (
        ODD_HEADS,
        'feature prediction',
        mutated(TargetAwareDecoder, 'forward', unnormed_latent),
    ),
    'positions of visible tokens in the decoder': (SQUARE, 'pixel prediction', visible_positions_in_decoder),
    'norm on the momentum output': (
        SQUARE,
        'momentum features',
        mutated(BootMAE, 'momentum_features', normed_momentum),
    ),
    'momentum encoder sees masked patches alone': (
        SQUARE,
        'momentum features',
        mutated(BootMAE, 'momentum_features', blind_momentum),
    ),
    'query and value bias swapped': (
        SQUARE,
        'momentum features',
        mutated(layers.SelfAttention, 'forward', swapped_biases),
    ),
    'cross-attention biases swapped': (
        SQUARE,
        'pixel prediction',
        mutated(decoder.CrossAttention, 'forward', swapped_biases),
    ),
    'softmax scale of uneven heads': (ODD_HEADS, 'pixel prediction', mutated(layers, 'attend', scale_of_uneven_heads)),
    'feature weight unused': (PLAIN_LOSS, 'loss', mutated(BootMAE, 'loss', unused_feature_weight)),
    'mask token without decay': (SQUARE, 'after one step', mutated(layer_decay, 'decays', undecayed('mask_token'))),
    'class token with decay': (SQUARE, 'after one step', mutated(layer_decay, 'decays', decayed('cls_token'))),
    'norm with decay': (SQUARE, 'after one step', mutated(layer_decay, 'decays', decayed('norm.bias'))),
    'momentum updated before the step': (SQUARE, 'momentum after it', momentum_before_step),
    'decay swapped': (
        SQUARE,
        'momentum after it',
        mutated(BootMAE, 'update_momentum', lambda f: lambda self, decay: f(self, 1 - decay)),
    ),
    'momentum not updated': (
        SQUARE,
        'momentum after it',
        mutated(BootMAE, 'update_momentum', lambda f: lambda self, decay: None),
    ),
    'final norm before pooling': (
        FINETUNE,
        'logits',
        mutated(PlainViT, 'forward_blocks', lambda f: lambda self, x: (self.fc_norm(f(self, x)[0]),)),
    ),
    'class token pooled': (
        FINETUNE,
        'logits',
        mutated(PlainViT, 'forward_blocks', lambda f: lambda self, x: (f(self, x)[0][:, [0, *range(x.shape[1])]],)),
    ),
}


MUTATIONS |= {
    'MAE: pixels channel first': (MAE, 'loss', mutated(MAEPretrainHead, 'patchify', channel_first)),
    'MAE: plain pixels channel first': (MAE_PIXELS, 'loss', mutated(MAEPretrainHead, 'patchify', channel_first)),
    'MAE: biased variance': (MAE, 'loss', mutated(MAEPretrainHead, 'construct_target', biased_variance)),
    'MAE: other target': (MAE, 'loss', mutated(MAEPretrainHead, '__init__', with_kwargs(norm_pix=False))),
    'MAE: normalized target': (MAE_PIXELS, 'loss', mutated(MAEPretrainHead, '__init__', with_kwargs(norm_pix=True))),
    'MAE: error of all patches': (
        MAE,
        'loss',
        mutated(MAEPretrainHead, 'loss', lambda f: lambda self, p, t, m: f(self, p, t, m * 0 + 1)),
    ),
    'MAE: decoder without positions': (
        MAE,
        'pixel prediction',
        mutated(MAEPretrainDecoder, 'forward', decoder_without_positions),
    ),
    'MAE: trained positions': (MAE, 'gradient norms', mutated(MAEViT, 'forward', trained_positions)),
    'MAE: another mask ratio': (MAE, 'mask', mutated(MAEViT, '__init__', with_kwargs(mask_ratio=0.5))),
    'MAE: LayerNorm eps': (
        MAE,
        'pixel prediction',
        mutated(MAEPretrainDecoder, '__init__', with_kwargs(norm_cfg=dict(type='LN'))),
    ),
    'MAE: class token without decay': (MAE, 'after one step', mutated(layer_decay, 'decays', undecayed('cls_token'))),
    'MAE: mask token without decay': (MAE, 'after one step', mutated(layer_decay, 'decays', undecayed('mask_token'))),
    'MAE: norm with decay': (MAE, 'after one step', mutated(layer_decay, 'decays', decayed('.bias'))),
}


@pytest.mark.parametrize('name', MUTATIONS)
def test_a_mistake_is_noticed(golden, monkeypatch, name):
    file, result, mutate = MUTATIONS[name]
    mutate(monkeypatch)
    error = compare(golden / file)[1][result]
    assert error > TOLERANCE


def test_a_trained_key_bias_is_noticed(golden, monkeypatch):
    """It cancels in the forward pass, but adds a parameter that the release does not have."""

    def with_key_bias(init):
        def building(self, *args):
            init(self, *args)
            self.k_bias = torch.nn.Parameter(torch.zeros_like(self.q_bias))

        return building

    mutated(layers.SelfAttention, '__init__', with_key_bias)(monkeypatch)
    with pytest.raises(ValueError, match=r'do not match the sizes in meta.*Missing key.*k_bias'):
        compare(golden / SQUARE)


@pytest.mark.parametrize('name, trained', [('cls_token', False), ('pos_embed', True)])
def test_a_change_of_what_is_trained_is_noticed(golden, monkeypatch, name, trained):
    def changing(build):
        def changed(meta):
            model = build(meta)
            getattr(model.backbone, name).requires_grad_(trained)
            return model

        return changed

    mutated(parity, 'build_bootmae', changing)(monkeypatch)
    assert compare(golden / SQUARE)[1]['gradient norms'] == float('inf')
