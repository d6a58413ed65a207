"""Exports: other programs compute the same with them, and reading them back restores every bit."""

import json

import pytest
import timm
import torch
from mmengine.registry import MODELS
from safetensors import safe_open
from timm.models import load_checkpoint
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close
from toys import ARCH, FACTS, MMPRETRAIN, classifier, images, same, scramble, segmentor, target
from wrong_files import Size, below, encoder, fused

from bootmae.checkpoints import find_encoder, load_encoder_weights, load_run, read_checkpoint
from bootmae.checkpoints.export import FORMATS, convert, export
from bootmae.checkpoints.load import tensors_hash

# --- and back ---


@pytest.mark.parametrize('to', FORMATS)
@pytest.mark.parametrize('source', ['online', 'momentum', 'classifier', 'segmentor', 'timm'])
def test_round_trip_is_bit_identical(tmp_path, sources, source, to):
    """Ours -> X -> ours: all weights where X has a place for them, the facts, and the hash."""
    if source == 'timm':
        path = tmp_path / 'timm.pth'
        torch.save(fused(encoder(Size())), path)
        state = find_encoder(torch.load(path)).state
        assert not same(state, encoder(Size())), 'the value biases of this file are not the query biases'
    else:
        path, state = sources('run' if source in ('online', 'momentum') else source)
    option = 'momentum' if source == 'momentum' else 'online'
    if source == 'segmentor' and to not in ('mmseg', 'authors', 'safetensors'):
        with pytest.raises(ValueError, match=f'{path} was not exported: {to} has no place for blocks.0.gamma_1'):
            convert(path, to, target(tmp_path, to))
        assert not target(tmp_path, to).exists()
        return
    convert(path, to, target(tmp_path, to), option)
    content = read_checkpoint(target(tmp_path, to))
    back, first = find_encoder(content, option), find_encoder(read_checkpoint(path), option)
    unpooled = ('fc_norm.',) if to in ('hf', 'mmseg', 'mmdet') else ()
    assert same(back.state, {key: value for key, value in first.state.items() if not key.startswith(unpooled)})
    assert (back.mean, back.std, back.img_size, back.num_heads) == (
        first.mean,
        first.std,
        first.img_size,
        first.num_heads,
    )
    facts = content['meta']['bootmae']
    assert facts['hash'] == tensors_hash(back.state)
    assert (facts['kind'], facts['source'], facts['format']) == (first.kind, option, to)
    if source == 'timm':
        assert (back.mean, 'method' in facts) == (None, False)
    else:
        assert (facts['method'], facts['seconds']) == ('BootMAE', 1.5)
        assert back.kind.endswith(f', exported from {first.kind}')


@pytest.mark.parametrize(
    'source, to',
    [
        ('run', 'safetensors'),
        ('run', 'authors'),
        ('classifier', 'safetensors'),
        ('classifier', 'authors'),
        ('classifier', 'timm'),
        ('classifier', 'mmpretrain'),
        ('segmentor', 'safetensors'),
        ('segmentor', 'authors'),
        ('segmentor', 'mmseg'),
    ],
)
def test_whole_models_come_back_whole(tmp_path, sources, source, to):
    """Through the format and then through safetensors, under our names: decoders, momentum encoder, heads."""
    path, state = sources(source)
    convert(path, to, target(tmp_path, to))
    convert(target(tmp_path, to), 'safetensors', tmp_path / 'back.safetensors')
    back = read_checkpoint(tmp_path / 'back.safetensors')
    assert same(back['state_dict'], state)
    assert back['meta']['bootmae']['kind'] in ('BootMAE run (online)', 'run of this suite')


def test_an_export_of_an_export_tells_where_it_began(tmp_path, sources):
    """An export of an export keeps the origin, and which encoder it is."""
    first, _ = sources('run')
    convert(first, 'authors', tmp_path / 'whole.pth')  # both encoders
    convert(tmp_path / 'whole.pth', 'timm', tmp_path / 'momentum.pth', 'momentum')
    convert(tmp_path / 'momentum.pth', 'safetensors', tmp_path / 'again.safetensors')  # its only one
    facts = [
        read_checkpoint(tmp_path / name)['meta']['bootmae']
        for name in ('whole.pth', 'momentum.pth', 'again.safetensors')
    ]
    assert [fact['source'] for fact in facts] == ['online', 'momentum', 'momentum']
    assert [fact['kind'] for fact in facts] == [
        'BootMAE run (online)',
        *["authors' BootMAE (momentum), exported from BootMAE run (online)"] * 2,
    ]
    state = find_encoder(read_checkpoint(first), 'momentum').state
    assert same(find_encoder(read_checkpoint(tmp_path / 'again.safetensors')).state, state)
    assert facts[1]['hash'] == facts[2]['hash'] == tensors_hash(state) != facts[0]['hash']


def test_an_export_loads_as_what_it_is(tmp_path, sources, make_vit):
    path, state = sources('run')
    convert(path, 'timm', tmp_path / 'a.safetensors', 'momentum')
    backbone = make_vit(out_type='avg_featmap')
    report = load_encoder_weights(backbone, tmp_path / 'a.safetensors')
    assert report.kind == 'timm ViT, exported from BootMAE run (momentum)'
    assert torch.equal(backbone.blocks[2].mlp.fc1.weight.float(), state['momentum.blocks.2.mlp.fc1.weight'])
    other = MODELS.build(
        dict(
            type='mmpretrain.PlainViT', arch=ARCH | dict(num_heads=3), img_size=32, patch_size=8, out_type='avg_featmap'
        )
    )
    with pytest.raises(ValueError, match='it has 4 attention heads'):
        load_encoder_weights(other, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='is not a checkpoint of this config.s ImageClassifier'):
        load_run(classifier(), read_checkpoint(tmp_path / 'a.safetensors'), 'a.safetensors')


def test_header_of_safetensors(tmp_path, sources):
    path, _ = sources('classifier')
    convert(path, 'safetensors', tmp_path / 'a.safetensors')
    with safe_open(tmp_path / 'a.safetensors', 'pt') as file:
        header = file.metadata()
    facts = json.loads(header['bootmae'])
    assert header['format'] == 'pt'
    assert facts == FACTS | dict(
        kind='run of this suite',
        source='online',
        format='safetensors',
        method='BootMAE',
        seconds=1.5,
        hash=facts['hash'],
    )


# --- timm ---


def timm_vit(**options) -> VisionTransformer:
    return VisionTransformer(**dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=4) | options).eval()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('source, options', [('online', {}), ('momentum', dict(final_norm=False))])
def test_timm_features(tmp_path, sources, make_vit, suffix, source, options):
    """Read by timm's own loader, strictly; mean of the patch tokens after the final norm."""
    path, _ = sources('run')
    convert(path, 'timm', tmp_path / f'a{suffix}', source)
    theirs = timm_vit(num_classes=0, global_pool='avg', fc_norm=False, **options)
    load_checkpoint(theirs, str(tmp_path / f'a{suffix}'), strict=True)
    ours, x = make_vit(final_norm=source == 'online'), images().double()
    load_encoder_weights(ours, path, source)
    assert_close(theirs.double()(x), ours(x)[0][:, 1:].mean(dim=1), rtol=1e-9, atol=1e-9)
    assert theirs(x).std() > 0.1


def test_timm_classifier(tmp_path, sources):
    path, state = sources('classifier')
    line = convert(path, 'timm', tmp_path / 'a.pth')
    theirs, ours = timm_vit(num_classes=5, global_pool='avg'), classifier().eval()
    theirs.load_state_dict(read_checkpoint(tmp_path / 'a.pth')['state_dict'], strict=True)
    ours.load_state_dict(state)
    x = images().double()
    assert_close(theirs.double()(x), ours.double()(x, mode='tensor'), rtol=1e-9, atol=1e-9)
    assert line.endswith(
        f'as timm: {len(theirs.state_dict())} tensors; left out: training state (not needed to use '
        f'the weights) -> {tmp_path / "a.pth"}'
    )


@pytest.mark.slow
def test_timm_vit_b(tmp_path):
    """At full size, with timm's own definition of ViT-B/16."""
    ours = MODELS.build(dict(type='mmpretrain.PlainViT', arch='base')).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in ours.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.2 * noise)
        if 'norm' in name and name.endswith('weight'):
            parameter.data.add_(1)
    torch.save(
        dict(state_dict={f'backbone.{key}': value for key, value in ours.state_dict().items()}), tmp_path / 'a.pth'
    )
    convert(tmp_path / 'a.pth', 'timm', tmp_path / 'b.safetensors')
    theirs = timm.create_model(
        'vit_base_patch16_224',
        num_classes=0,
        global_pool='avg',
        fc_norm=False,
        checkpoint_path=str(tmp_path / 'b.safetensors'),
    ).eval()
    x = torch.randn(1, 3, 224, 224, generator=generator)
    with torch.no_grad():
        expected = ours(x)[0][:, 1:].mean(dim=1)
        assert_close(theirs(x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


# --- mmpretrain, mmseg, mmdet ---


def test_mmpretrain_features(tmp_path, sources, make_vit):
    path, _ = sources('run')
    convert(path, 'mmpretrain', tmp_path / 'a.pth')
    theirs = MODELS.build(dict(type='mmpretrain.VisionTransformer', out_type='raw', **MMPRETRAIN))
    state = read_checkpoint(tmp_path / 'a.pth')['state_dict']
    assert all(key.startswith('backbone.') for key in state)
    theirs.load_state_dict({key.removeprefix('backbone.'): value for key, value in state.items()}, strict=True)
    theirs.double().eval()
    ours = make_vit()
    load_encoder_weights(ours, path)
    assert_close(theirs(images().double())[0], ours(images().double())[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('neck', [None, dict(type='mmpretrain.ClsBatchNormNeck', input_features=24)])
def test_mmpretrain_classifier(tmp_path, neck):
    """With its neck, if it has one; timm has no place for a neck."""
    ours = classifier(neck)
    torch.save(dict(state_dict=scramble(ours), meta={}), tmp_path / 'ours.pth')
    convert(tmp_path / 'ours.pth', 'mmpretrain', tmp_path / 'a.pth')
    theirs = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            neck=neck,
            backbone=dict(type='mmpretrain.VisionTransformer', out_type='avg_featmap', final_norm=False, **MMPRETRAIN),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=24),
        )
    )
    theirs.load_state_dict(read_checkpoint(tmp_path / 'a.pth')['state_dict'], strict=True)
    theirs.double().eval()
    x = images().double()
    assert_close(theirs(x, mode='tensor'), ours.double()(x, mode='tensor'), rtol=1e-9, atol=1e-9)
    if neck:
        line = convert(tmp_path / 'ours.pth', 'timm', tmp_path / 'b.pth')
        assert 'left out: neck (not part of the encoder), head (not part of the encoder)' in line


def test_mmseg_features_of_an_encoder(tmp_path, sources, make_vit):
    from mmseg.models.backbones import VisionTransformer as MMSegViT

    path, _ = sources('run')
    convert(path, 'mmseg', tmp_path / 'a.pth')
    theirs = MMSegViT(
        img_size=32,
        patch_size=8,
        embed_dims=24,
        num_layers=3,
        num_heads=4,
        final_norm=True,
        patch_bias=True,
        norm_cfg=dict(type='LN', eps=1e-6),
    )
    state = read_checkpoint(tmp_path / 'a.pth')['state_dict']
    theirs.load_state_dict({key.removeprefix('backbone.'): value for key, value in state.items()}, strict=True)
    theirs.double().eval()
    ours, x = make_vit(out_type='featmap'), images().double()
    load_encoder_weights(ours, path)
    assert_close(theirs(x)[0], ours(x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('source', ['ours', 'authors'])
def test_a_segmentor_loads_whole(tmp_path, sources, source):
    """tools/test.py can load the file: it has every weight of the segmentor, and the facts in meta."""
    path, state = sources('segmentor')
    if source == 'authors':
        convert(path, 'authors', tmp_path / 'authors.pth')
        path = tmp_path / 'authors.pth'
        with pytest.raises(ValueError, match=r'Convert the authors. segmentation file: tools/convert_checkpoint.py'):
            load_run(segmentor(), read_checkpoint(path), path)
    convert(path, 'mmseg', tmp_path / 'a.pth')
    content, model = read_checkpoint(tmp_path / 'a.pth'), segmentor()
    load_run(model, content, tmp_path / 'a.pth')
    assert same(model.state_dict(), state)
    assert content['meta']['bootmae']['mean'] == FACTS['mean']


@pytest.mark.parametrize(
    'make, message',
    [
        (
            lambda: segmentor(pyramid=dict(type='SimplePyramid'), out_indices=(3,)),
            'is not a weight of the pyramid of the release',
        ),
        (
            lambda: segmentor((8, 8), window_size=2, global_blocks=(3,)),
            'backbone.blocks.0.attn.relative_position_bias_table has 12 rows',
        ),
        (lambda: segmentor((2, 4)), r'has 24 rows, which do not cover all pairs of None patches'),
    ],
)
def test_segmentors_that_are_not_the_release_s(tmp_path, make, message):
    torch.save(dict(state_dict=make().state_dict(), meta={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / 'a.pth', 'authors', tmp_path / 'b.pth')


def test_mmdet_names(tmp_path, sources):
    """ViTDet's names, below backbone. for load_from, and as `model` without prefix for its own loader."""
    path, state = sources('run')
    line = convert(path, 'mmdet', tmp_path / 'a.pth')
    content = read_checkpoint(tmp_path / 'a.pth')
    assert same(content['state_dict'], below('backbone.', content['model']))
    wanted = {'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias'} | {
        f'blocks.{k}.{part}.{kind}'
        for k in range(3)
        for kind in ('weight', 'bias')
        for part in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
    }
    assert set(content['model']) - wanted == {'cls_token', 'norm.weight', 'norm.bias'}, 'its loader passes over these'
    assert wanted <= set(content['model'])
    q, k, v = content['model']['blocks.1.attn.qkv.bias'].chunk(3)
    assert torch.equal(q, state['backbone.blocks.1.attn.q_bias'])
    assert torch.equal(v, state['backbone.blocks.1.attn.v_bias'])
    assert not k.any()
    assert f'{len(content["model"])} tensors; left out: pixel_decoder (pretraining only), feature_decoder (' in line
    assert 'momentum (--source momentum exports it)' in line


def test_a_detector_gives_its_backbone(tmp_path):
    """Without its pyramid and heads, which differ from ViTDet's."""
    weights = below('backbone.', encoder(Size())) | {
        'backbone.pyramid.levels.0.0.weight': torch.ones(2),
        'rpn_head.rpn_conv.weight': torch.ones(2),
        'roi_head.bbox_head.fc_cls.bias': torch.ones(2),
    }
    torch.save(dict(state_dict=weights, meta={}), tmp_path / 'a.pth')
    line = convert(tmp_path / 'a.pth', 'mmdet', tmp_path / 'b.pth')
    assert line.split('left out: ')[1].startswith(
        'pyramid (mmdet does not use it here), rpn_head (not part of the encoder), roi_head (not part of the encoder)'
    )
    assert same(find_encoder(read_checkpoint(tmp_path / 'b.pth')).state, encoder(Size()))


# --- what cannot be exported ---


def test_nothing_is_exported_by_halves():
    state = {key: value for key, value in encoder(Size()).items() if key != 'blocks.1.attn.v_bias'}
    for to in FORMATS:
        with pytest.raises(ValueError, match=r'lacks weights of a plain ViT \(1\): blocks.1.attn.v_bias'):
            export(dict(state_dict=below('backbone.', state)), to)


@pytest.mark.parametrize('to', ['timm', 'mmpretrain', 'mmseg', 'mmdet', 'hf'])
def test_heads_that_do_not_divide_the_width(to):
    model = MODELS.build(dict(type='mmpretrain.PlainViT', arch=ARCH | dict(num_heads=5), img_size=32, patch_size=8))
    content = dict(state_dict=below('backbone.', model.state_dict()))
    with pytest.raises(ValueError, match='blocks.0.attn.q_bias has 20 channels for a width of 24: heads must divide'):
        export(content, to)
    assert same(export(content, 'authors').weights['model'], model.state_dict())


@pytest.mark.parametrize('to', ['timm', 'mmpretrain', 'mmseg', 'hf', 'authors'])
def test_attention_windows_have_no_place(to):
    """The weights are those of a plain ViT, which would compute something else."""
    content = dict(state_dict=below('backbone.', encoder(Size())), meta=dict(bootmae=dict(window_size=14)))
    with pytest.raises(ValueError, match=f'its blocks attend within windows of 14 patches, and {to} has no place'):
        export(content, to)
    assert same(export(content, 'mmdet').encoder, export(content, 'safetensors').encoder)


def test_unknown_format():
    with pytest.raises(ValueError, match="format 'onnx': use one of mmpretrain, timm"):
        export({}, 'onnx')
