"""Detection of the file format, of the encoder's prefix and of recorded facts."""

import argparse

import numpy as np
import pytest
import torch
from encoders import SIZES, double, features, image, timm_model
from mmpretrain.registry import MODELS

from bootmae.checkpoints import find_encoder
from bootmae.checkpoints.identify import HALF, weights_of


@pytest.fixture
def release(golden):
    """Online, momentum and fine-tuned weights of the authors' release, at toy size."""
    found = {}
    for file, prefix in (('odd_heads', 'online/'), ('odd_heads', 'momentum/'), ('finetune', 'model/')):
        with np.load(golden / f'compact_{file}.npz') as archive:
            found[prefix] = {
                key.removeprefix(prefix): torch.from_numpy(value)
                for key, value in archive.items()
                if key.startswith(prefix)
            }
    return found


# Our own files


def test_our_pretraining_run(make_bootmae, make_vit):
    model = make_bootmae().eval()
    content = dict(state_dict=model.state_dict(), meta=dict(epoch=3))
    online, momentum = find_encoder(content), find_encoder(content, 'momentum')
    assert (online.kind, momentum.kind) == ('BootMAE run (online)', 'BootMAE run (momentum)')
    for encoder in (online, momentum):
        assert (encoder.mean, encoder.std, encoder.depth) == (HALF, HALF, 3)
    assert set(online.state) == set(model.backbone.state_dict())
    assert torch.equal(features(make_vit, online), model.backbone(image())[0])
    assert torch.equal(features(make_vit, momentum, final_norm=False), model.momentum(image())[0])
    assert not torch.equal(online.state['cls_token'], momentum.state['cls_token'])


def test_our_classifier(make_vit, randomize):
    model = double(
        randomize(
            MODELS.build(
                dict(
                    type='ImageClassifier',
                    backbone=dict(
                        type='PlainViT', arch=dict(embed_dims=24, depth=3, num_heads=4), out_type='avg_featmap', **SIZES
                    ),
                    head=dict(type='LinearClsHead', num_classes=5, in_channels=24),
                )
            )
        )
    )
    encoder = find_encoder(dict(state_dict=model.state_dict()))
    assert encoder.kind == 'run of this suite'
    assert (encoder.mean, encoder.std) == (None, None)
    assert torch.equal(features(make_vit, encoder, 'avg_featmap'), model.backbone(image())[0])


@pytest.mark.parametrize('source', ['online', 'momentum'])
def test_recorded_statistics_are_taken(make_bootmae, source):
    meta = dict(bootmae=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], img_size=[8, 16]))
    encoder = find_encoder(dict(state_dict=make_bootmae().state_dict(), meta=meta), source)
    assert (encoder.mean, encoder.std, encoder.img_size) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (8, 16))


@pytest.mark.parametrize('meta', [None, 'text', {}, dict(bootmae={})])
def test_other_meta_is_no_matter(make_bootmae, meta):
    assert find_encoder(dict(state_dict=make_bootmae().state_dict(), meta=meta)).mean == HALF


# The authors' files


def test_authors_pretraining(release):
    content = dict(model=release['online/'], model_ema=release['momentum/'], epoch=800, args=argparse.Namespace())
    online, momentum = find_encoder(content), find_encoder(content, 'momentum')
    assert (online.kind, momentum.kind) == ("authors' BootMAE (online)", "authors' BootMAE (momentum)")
    for encoder, source in ((online, 'online/'), (momentum, 'momentum/')):
        assert (encoder.mean, encoder.std, encoder.depth) == (HALF, HALF, 3)
        assert set(encoder.state) == {
            key for key in release[source] if key.startswith(('cls_', 'pos_', 'patch_', 'blocks.', 'norm.'))
        }
        assert all(value is release[source][key] for key, value in encoder.state.items())


def test_authors_pretraining_without_momentum(release):
    content = dict(model=release['online/'])
    assert find_encoder(content).kind == "authors' BootMAE (online)"
    with pytest.raises(ValueError, match=r'no momentum encoder \(model_ema\) in this file of the authors: use source'):
        find_encoder(content, 'momentum')


@pytest.mark.parametrize('wrap', [lambda state: state, lambda state: dict(model=state)])
def test_authors_finetuned(make_vit, release, golden, wrap):
    encoder = find_encoder(wrap(release['model/']))
    assert (encoder.kind, encoder.mean, encoder.std, encoder.depth) == ("authors' fine-tuned BootMAE", HALF, HALF, 2)
    assert set(release['model/']) - set(encoder.state) == {'head.weight', 'head.bias'}
    model = make_vit(
        arch=dict(embed_dims=24, depth=2, num_heads=4), img_size=224, patch_size=16, out_type='avg_featmap'
    )
    model.load_state_dict({key: value for key, value in encoder.state.items() if not key.startswith('norm.')})
    with np.load(golden / 'compact_finetune.npz') as archive:
        pooled = model(torch.from_numpy(archive['images']).double())[0]
        logits = pooled @ release['model/']['head.weight'].double().T + release['model/']['head.bias']
        assert logits.detach().numpy() == pytest.approx(archive['logits'], rel=1e-5)


# Where the weights are


@pytest.mark.parametrize('key', ['state_dict', 'model', 'module', None])
def test_where_the_weights_are(key):
    state = {'a.b': torch.ones(1), 'c': torch.zeros(1)}
    content = {key: state, 'epoch': 3} if key else state | {'epoch': 3}
    assert weights_of(content) == state


def test_prefix_of_a_parallel_wrapper(make_bootmae):
    state = make_bootmae().state_dict()
    wrapped = dict(state_dict={f'module.{key}': value for key, value in state.items()})
    found = weights_of(wrapped)
    assert set(found) == set(state)
    assert find_encoder(wrapped).kind == 'BootMAE run (online)'
    partly = {'module.a': torch.ones(1), 'b': torch.ones(1)}
    assert set(weights_of(partly)) == {'module.a', 'b'}, 'a prefix of all names, or none'


@pytest.mark.parametrize(
    'content, message',
    [
        ({}, r'no ViT encoder in this file: its weights are named not at all'),
        (dict(epoch=3), 'not at all'),
        (dict(state_dict={}), 'not at all'),
        (
            dict(state_dict={'conv1.weight': torch.ones(1), 'layer1.0.bn1.bias': torch.ones(1)}),
            r"named \['conv1.weight', 'layer1.0.bn1.bias'\]",
        ),
        (dict(model={'decode_blocks.0.norm1.weight': torch.ones(1)}), 'no ViT encoder'),
        (
            dict(state_dict={'pixel_decoder.norm.weight': torch.ones(1), 'momentum.cls_token': torch.ones(1)}),
            'no ViT encoder',
        ),
    ],
)
def test_no_encoder(content, message):
    with pytest.raises(ValueError, match=message):
        find_encoder(content)


def test_only_pretraining_files_have_a_momentum_encoder(randomize):
    with pytest.raises(ValueError, match='only BootMAE pretraining files have one'):
        find_encoder(timm_model(randomize).state_dict(), 'momentum')


def test_unknown_source(make_bootmae):
    with pytest.raises(ValueError, match="source='teacher': use online, momentum, raw or ema"):
        find_encoder(make_bootmae().state_dict(), 'teacher')


# Runs and prefixes


@pytest.mark.parametrize(
    'heads',
    [
        ['decode_head.conv_seg.weight', 'auxiliary_head.conv_seg.bias'],
        ['neck.bn.weight'],
        ['rpn_head.rpn_reg.bias', 'roi_head.mask_head.conv_logits.bias'],
    ],
)
def test_our_downstream_runs(make_vit, heads):
    """The encoder and the other weights, under our names."""
    vit = make_vit()
    state = {f'backbone.{key}': value for key, value in vit.state_dict().items()}
    encoder = find_encoder(dict(state_dict=state | {name: torch.ones(2) for name in heads}))
    assert encoder.kind == 'run of this suite'
    assert set(encoder.state) == set(vit.state_dict())
    assert set(encoder.rest) == set(heads)
    assert encoder.whole


def test_a_lost_encoder_of_a_pretraining_run(make_bootmae):
    """Neither encoder replaces the other."""
    state = make_bootmae().state_dict()
    for source, lost in (('online', 'backbone.'), ('momentum', 'momentum.')):
        left = {key: value for key, value in state.items() if not key.startswith(lost)}
        with pytest.raises(ValueError, match=rf'the {source} encoder \({lost}\*\) is missing in this BootMAE run'):
            find_encoder(left, source)
        find_encoder(left, 'momentum' if source == 'online' else 'online')


@pytest.mark.parametrize(
    'first, second, names',
    [
        ('backbone.', 'ema.', "'backbone.' and 'ema.'"),
        ('', 'teacher.', "no prefix and 'teacher.'"),
        ('module.backbone.', 'backbone.', "'backbone.' and 'module.backbone.'"),
        ('student.', 'teacher.', "'student.' and 'teacher.'"),
    ],
)
def test_never_one_of_two(randomize, make_vit, first, second, names):
    timm, ours = timm_model(randomize).state_dict(), make_vit().state_dict()
    state = {first + key: value for key, value in timm.items()} | {second + key: value for key, value in ours.items()}
    choice = "--source raw takes 'student.' and --source ema 'teacher.'"
    remedy = choice if first == 'student.' else 'save the weights of the one'
    with pytest.raises(ValueError, match=f'several ViT encoders in this file, below {names}: {remedy}'):
        find_encoder(dict(state_dict=state))


def test_a_third_encoder_in_a_pretraining_run(make_bootmae):
    state = make_bootmae().state_dict()
    third = {f'ema.{key}': value for key, value in make_bootmae().backbone.state_dict().items()}
    with pytest.raises(ValueError, match="below 'backbone.' and 'ema.' and 'momentum.'"):
        find_encoder(dict(state_dict=state | third))


def test_an_unknown_prefix_is_named(randomize, make_vit):
    model = timm_model(randomize)
    encoder = find_encoder({f'net.vision.{key}': value for key, value in model.state_dict().items()})
    assert encoder.kind == "timm ViT below 'net.vision.'"
    torch.testing.assert_close(features(make_vit, encoder), model.forward_features(image()), rtol=1e-6, atol=1e-9)


# What a file says of itself


def test_recorded_heads(make_bootmae):
    state = make_bootmae().state_dict()
    meta = dict(bootmae=dict(mean=[1.0], std=[2.0], num_heads=7))
    encoder = find_encoder(dict(state_dict=state, meta=meta))
    assert (encoder.num_heads, encoder.mean, encoder.img_size) == (7, (1.0,), None)
    assert find_encoder(dict(state_dict=state)).num_heads is None


def test_statistics_of_an_export_are_the_recorded_or_unknown(release):
    """A timm file exported to the authors' names does not get the statistics of the authors' files."""
    meta = dict(bootmae=dict(kind='timm ViT', source='online'))
    encoder = find_encoder(dict(model=release['model/'], meta=meta))
    assert encoder.kind == "authors' fine-tuned BootMAE, exported from timm ViT"
    assert (encoder.mean, encoder.std) == (None, None)


@pytest.mark.parametrize(
    'key, value',
    [
        ('mean', 'abc'),
        ('mean', [1.0, None]),
        ('std', {}),
        ('img_size', [3]),
        ('img_size', 224),
        ('num_heads', '4'),
        ('num_heads', [4, 4]),
        ('num_heads', True),
    ],
)
def test_a_damaged_record(make_bootmae, key, value):
    meta = dict(bootmae=dict(mean=[1.0], std=[1.0]) | {key: value})
    with pytest.raises(ValueError, match=f'its record meta.bootmae.{key}=.* is damaged: use another copy'):
        find_encoder(dict(state_dict=make_bootmae().state_dict(), meta=meta))
