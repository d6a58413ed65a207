"""Pretraining that starts from given weights: what the encoders compute, what is taken from a file, what is refused."""

import re

import pytest
import torch
from encoders import MMPRETRAIN_ARCH, SIZES, timm_model
from mmpretrain.registry import MODELS
from toys import FACTS

from bootmae.checkpoints.keys import MAE_DECODER, MMPRETRAIN, rename, to_authors
from bootmae.checkpoints.load import tensors_hash
from bootmae.checkpoints.start import start_pretraining
from bootmae.checkpoints.statistics import convert_statistics, same_statistics
from bootmae.models.positions import resize_positions

HALF, IMAGENET = ((127.5,) * 3,) * 2, ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HEADS = '4 attention heads as in the config (the file does not tell)'
COPY = 'momentum encoder: a copy of the online encoder'
NEW = 'decoders: new (the file has none of this kind)'
DECODERS = ('pixel_decoder.', 'feature_decoder.')


def as_for_the_file(mean: list, std: list) -> str:
    return f'input mean {mean}, std {std}, as for the file'


IN_HALF = as_for_the_file([127.5] * 3, [127.5] * 3)


@pytest.fixture
def make_mae(randomize):
    """``make_mae()``: mmpretrain's MAE of the size of the other toys, in float64, all weights random."""

    def make(seed: int = 0, width: int = 16) -> torch.nn.Module:
        loss = dict(type='PixelReconstructionLoss', criterion='L2')
        cfg = dict(
            type='MAE',
            backbone=dict(type='MAEViT', arch=MMPRETRAIN_ARCH, **SIZES),
            neck=dict(type='MAEPretrainDecoder', num_patches=16, patch_size=8, embed_dim=24, decoder_depth=2)
            | dict(decoder_embed_dim=width, decoder_num_heads=4),
            head=dict(type='MAEPretrainHead', patch_size=8, loss=loss),
        )
        return randomize(MODELS.build(cfg), seed).double()

    return make


@pytest.fixture
def save(tmp_path):
    """``save(**content)`` writes a file."""

    def write(**content):
        torch.save(content, tmp_path / 'given.pth')
        return tmp_path / 'given.pth'

    return write


@pytest.fixture
def pixels():
    """Images in 0..255."""
    return 255 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def normalized(images: torch.Tensor, statistics) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in statistics)
    return (images - mean) / std


def with_statistics(model, statistics) -> torch.nn.Module:
    for name, values in zip(('mean', 'std'), statistics, strict=True):
        model.data_preprocessor.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
    return model


def state_of(model, prefix: str = '') -> dict:
    return {
        key.removeprefix(prefix): value.clone() for key, value in model.state_dict().items() if key.startswith(prefix)
    }


def timm_tokens(model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of timm's last block, and of the final norm after it."""
    found = []
    handle = model.blocks[-1].register_forward_hook(lambda *args: found.append(args[-1]))
    normed = model.forward_features(images)
    handle.remove()
    return found[0], normed


# --- input statistics ---


def test_a_converted_patch_embedding_gives_the_same_tokens(make_vit, pixels):
    vit = make_vit()
    before = vit.patch_embed(vit.patch_embed.patchify(normalized(pixels, IMAGENET)))
    vit.load_state_dict(convert_statistics(vit.state_dict(), IMAGENET, HALF))
    after = vit.patch_embed(vit.patch_embed.patchify(normalized(pixels, HALF)))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert (vit.patch_embed(vit.patch_embed.patchify(normalized(pixels, IMAGENET))) - before).abs().max() > 0.1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_converted_in_float32(make_vit, dtype):
    state = {key: value.to(dtype) for key, value in make_vit().state_dict().items()}
    found = convert_statistics(state, IMAGENET, HALF)
    wanted = convert_statistics({key: value.float() for key, value in state.items()}, IMAGENET, HALF)
    assert all(
        torch.equal(found[f'patch_embed.proj.{name}'], wanted[f'patch_embed.proj.{name}'])
        for name in ('weight', 'bias')
    )


def test_converted_to_the_same_statistics_is_unchanged(make_vit):
    state = make_vit().float().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in convert_statistics(state, HALF, HALF).items())


def test_other_numbers_of_channels(make_vit):
    state = make_vit().state_dict()
    with pytest.raises(ValueError, match=r'has 3 channels, and the input statistics have 3 \(file\) and 1 \(config\)'):
        convert_statistics(state, HALF, ((127.5,), (127.5,)))
    assert not same_statistics(HALF, ((127.5,), (127.5,)))


# --- what the encoders compute at the first step ---


@pytest.mark.parametrize('how', ['followed', 'converted'])
def test_the_first_targets_are_the_features_of_the_given_weights(
    make_bootmae, randomize, draw_ids_shuffle, save, pixels, how
):
    """timm's own ViT computes them from the same file, whose images were normalized with ImageNet's statistics."""
    theirs, model = timm_model(lambda model: randomize(model, 5)), with_statistics(make_bootmae(), HALF)
    path = save(state_dict=theirs.state_dict(), meta=dict(bootmae=FACTS | dict(mean=IMAGENET[0], std=IMAGENET[1])))
    report = start_pretraining(model, path, statistics=HALF if how == 'converted' else None)
    images = normalized(pixels, HALF if how == 'converted' else IMAGENET)
    ids = draw_ids_shuffle(model)
    out = model.predict(images, ids)
    tokens, normed = timm_tokens(theirs, normalized(pixels, IMAGENET))
    wanted = tokens[:, 1:].gather(1, out.ids_masked.unsqueeze(-1).expand(-1, -1, 24))
    torch.testing.assert_close(out.targets, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.backbone(images)[0], normed, rtol=1e-9, atol=1e-9)
    assert report.hash == model.backbone.load_report.hash
    if how == 'converted':
        assert report.remarks[-1] == (
            'patch embedding converted from mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375] to mean '
            '[127.5, 127.5, 127.5], std [127.5, 127.5, 127.5]'
        )


def test_the_first_features_of_mae_are_those_of_the_given_weights(make_mae, randomize, save, pixels):
    theirs, model = timm_model(lambda model: randomize(model, 5)), make_mae()
    path = save(state_dict=theirs.state_dict())
    start_pretraining(model, path)
    images = normalized(pixels, HALF)
    torch.testing.assert_close(
        model.backbone(images, mask=None)[0], timm_tokens(theirs, images)[1], rtol=1e-9, atol=1e-9
    )


def test_bootmae_to_mae_and_back(make_bootmae, make_mae, save, pixels):
    """The same encoder in both, from each other's files."""
    images = normalized(pixels, HALF)
    ours, mae = make_bootmae(seed=1), make_mae(seed=2)
    start_pretraining(mae, save(state_dict=ours.state_dict()))
    wanted = ours.backbone(images)[0]
    torch.testing.assert_close(mae.backbone(images, mask=None)[0], wanted, rtol=1e-9, atol=1e-9)
    other = make_bootmae(seed=3)
    report = start_pretraining(other, save(state_dict=mae.state_dict()))
    torch.testing.assert_close(other.backbone(images)[0], wanted, rtol=1e-9, atol=1e-9)
    assert report.remarks[:3] == [HEADS, NEW, COPY]


def test_positions_are_interpolated(make_bootmae, save):
    """Of all encoders and decoders; grids of 4 x 4 and 6 x 6 patches."""
    given = make_bootmae(seed=1)
    model = make_bootmae(backbone=dict(img_size=48), masking=dict(num_masked=27, num_block=20))
    report = start_pretraining(model, save(state_dict=given.state_dict()))
    assert report.resized == ['pos_embed from 4x4 to 6x6']
    assert report.remarks[1] == 'decoders and momentum encoder: those of the file'
    for part in ('backbone', 'momentum', 'pixel_decoder', 'feature_decoder'):
        old = given.get_submodule(part).pos_embed
        assert torch.equal(model.get_submodule(part).pos_embed, resize_positions(old, (4, 4), (6, 6))), part


def test_new_feature_decoders_share_the_positions_of_the_encoder(make_bootmae, randomize, save):
    """As in the release, whose format has no place for others."""
    theirs, model = timm_model(lambda model: randomize(model, 5)), make_bootmae()
    with torch.no_grad():
        theirs.pos_embed.normal_()
    start_pretraining(model, save(state_dict=theirs.state_dict()))
    assert torch.equal(model.backbone.pos_embed, theirs.pos_embed)
    assert torch.equal(model.feature_decoder.pos_embed, theirs.pos_embed)
    to_authors(model.state_dict())


# --- what is taken from a file ---


def same(model, state: dict, *prefixes: str) -> bool:
    ours = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    return bool(ours) and all(torch.equal(value, state[key]) for key, value in ours.items())


def test_a_pretraining_goes_on_with_decoders_and_momentum_encoder(make_bootmae, save):
    given, model = make_bootmae(seed=1).state_dict(), with_statistics(make_bootmae(), HALF)
    report = start_pretraining(
        model, save(state_dict=given, meta=dict(bootmae=FACTS | dict(mean=HALF[0], std=HALF[1])))
    )
    assert same(model, given, '')
    assert report.remarks == ['decoders and momentum encoder: those of the file', IN_HALF]


def test_converted_momentum_encoders(make_bootmae, save, pixels, draw_ids_shuffle):
    given = make_bootmae(seed=1)
    ids = draw_ids_shuffle(given)
    before = given.predict(normalized(pixels, IMAGENET), ids)
    facts = FACTS | dict(mean=IMAGENET[0], std=IMAGENET[1])
    model = make_bootmae()
    start_pretraining(model, save(state_dict=given.state_dict(), meta=dict(bootmae=facts)), statistics=HALF)
    after = model.predict(normalized(pixels, HALF), ids)
    for name in ('targets', 'features', 'pixels'):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('average', [True, False])
def test_files_of_the_authors(make_bootmae, save, average):
    given, model = make_bootmae(seed=1), make_bootmae()
    given.feature_decoder.pos_embed.data.copy_(given.backbone.pos_embed)
    state = state_of(given)
    online, momentum = to_authors(state)
    report = start_pretraining(model, save(model=online, **(dict(model_ema=momentum) if average else {})))
    assert same(model, state, 'backbone.', *DECODERS)
    assert same(model, state, 'momentum.') == average
    said = ['decoders and momentum encoder: those of the file'] if average else ['decoders: those of the file', COPY]
    assert report.remarks[1 : 1 + len(said)] == said
    if not average:
        online = {f'momentum.{key}': value for key, value in state_of(model, 'backbone.').items()}
        assert same(model, online, 'momentum.')


def test_the_momentum_encoder_as_start(make_bootmae, save):
    """Both encoders start from it. It has no final norm of its own, and the decoders belong to the online encoder."""
    given, model = make_bootmae(seed=1), make_bootmae()
    before = state_of(model)
    report = start_pretraining(model, save(state_dict=given.state_dict()), source='momentum')
    momentum = state_of(given, 'momentum.')
    for part in ('backbone.', 'momentum.'):
        assert all(torch.equal(value, model.state_dict()[part + key]) for key, value in momentum.items())
    assert torch.equal(model.backbone.norm.weight, given.backbone.norm.weight)
    assert same(model, before | {'feature_decoder.pos_embed': model.backbone.pos_embed}, *DECODERS)
    assert report.hash == tensors_hash(momentum)
    assert report.remarks[:4] == [
        'final norm: that of the online encoder',
        HEADS,
        'decoders: new, because those of the file belong to its online encoder',
        COPY,
    ]


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (
            dict(pixel_decoder=dict(embed_dims=12, num_heads=3, tap=1)),
            'pixel_decoder.mask_token (1, 1, 16) for (1, 1, 12)',
        ),
        (dict(feature_decoder=dict(depth=1)), 'feature_decoder.blocks.1.context_norm.bias'),
    ],
)
def test_decoders_that_do_not_fit_are_new(make_bootmae, save, change, why):
    given, model = make_bootmae(seed=1), make_bootmae(**change)
    before = state_of(model)
    report = start_pretraining(model, save(state_dict=given.state_dict()))
    assert same(model, before, *DECODERS)
    assert same(model, given.state_dict(), 'backbone.')
    assert report.remarks[1:3] == [f'decoders: new, because those of the file do not fit: {why}', COPY]
    assert torch.equal(model.momentum.cls_token, given.backbone.cls_token), 'not that of the file without its decoders'


def facebookresearch(mae) -> dict:
    """The weights of mmpretrain's MAE under the names of facebookresearch's."""
    encoder = rename(state_of(mae, 'backbone.'), MMPRETRAIN, back=True)
    return encoder | rename(state_of(mae, 'neck.'), MAE_DECODER)


@pytest.mark.parametrize('kind', ['mmpretrain', 'facebookresearch'])
def test_mae_takes_the_decoder_of_mae(make_mae, save, kind):
    given = make_mae(seed=1)
    path = save(state_dict=state_of(given)) if kind == 'mmpretrain' else save(model=facebookresearch(given))
    model, other = make_mae(), make_mae(width=8)
    assert start_pretraining(model, path).remarks[1] == 'decoders: those of the file'
    assert same(model, given.state_dict(), 'neck.')
    before = state_of(other)
    assert 'do not fit' in start_pretraining(other, path).remarks[1]
    assert same(other, before, 'neck.')


def test_a_pooled_classifier_has_no_final_norm(make_bootmae, randomize, save):
    """The norm of the online encoder is then new; the targets do not pass it."""
    theirs = timm_model(randomize, global_pool='avg', fc_norm=True)
    model = make_bootmae()
    report = start_pretraining(model, save(model=theirs.state_dict()))
    assert (report.new, report.parts) == (['norm.weight', 'norm.bias'], ['final norm'])
    assert report.unused == ['fc_norm.bias', 'fc_norm.weight']


# --- what is refused ---


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(arch=dict(embed_dims=24, depth=2, num_heads=4)), r"it has 3 blocks, the model's arch has 2"),
        (dict(arch=dict(embed_dims=12, depth=3, num_heads=4)), r'of another shape: .* for \(12'),
        (dict(arch=dict(embed_dims=24, depth=3, num_heads=3)), r"it has 4 attention heads, the model's arch has 3"),
        (dict(patch_size=4), r'patch_embed.proj.weight \(24, 3, 8, 8\) for \(24, 3, 4, 4\)'),
        (dict(in_channels=1), r'it has 3 input channels, the model has 1; to adapt'),
    ],
)
def test_other_encoders_are_refused(make_bootmae, save, change, message):
    given = make_bootmae(seed=1)
    path = save(state_dict=given.state_dict(), meta=dict(bootmae=FACTS))
    masking = dict(num_masked=40, num_block=30) if 'patch_size' in change else dict(num_masked=11, num_block=8)
    model = make_bootmae(backbone=change, masking=masking, feature_decoder=dict(tap=1))
    before = state_of(model)
    with pytest.raises(ValueError, match=rf'{re.escape(str(path))} was not loaded into the backbone: .*{message}'):
        start_pretraining(model, path)
    assert same(model, before, '')


def test_a_missing_weight_is_refused(make_mae, make_vit, save):
    state = state_of(make_vit())
    del state['blocks.1.norm2.bias']
    model = make_mae()
    before = state_of(model)
    with pytest.raises(ValueError, match='1 missing: blocks.1.norm2.bias'):
        start_pretraining(model, save(state_dict={f'backbone.{key}': value for key, value in state.items()}))
    assert same(model, before, '')


def test_decoders_that_are_not_finite(make_bootmae, save):
    state = make_bootmae(seed=1).state_dict()
    state['pixel_decoder.norm.bias'][0] = float('nan')
    with pytest.raises(
        ValueError, match=r'given.pth has decoder weights that are not finite .*pixel_decoder.norm.bias'
    ):
        start_pretraining(make_bootmae(), save(state_dict=state))
