"""Weights named ``timm:NAME``, with a stand-in for the download."""

from functools import partial

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from bootmae.checkpoints import find_encoder, hub, load_encoder_weights, read_checkpoint
from bootmae.checkpoints.load import tensors_hash
from bootmae.config.load import load_config
from bootmae.config.weights import apply_init
from bootmae.evaluation.rows import read_run_facts, result_row

NAME = 'vit_base_patch16_224.mae'


@pytest.fixture
def toy_hub(monkeypatch, randomize):
    """A hub with a toy model under every name; yields the model and the requested names."""
    asked = []
    toy = randomize(VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=4, num_classes=7))

    def download(_, name: str):
        asked.append(name)
        toy.pretrained_cfg = dict(timm.get_pretrained_cfg(name).to_dict())
        return toy.eval()

    monkeypatch.setattr(hub, 'download', download)
    return toy, asked


def test_name_is_read_as_a_file_of_this_suite(toy_hub, make_vit):
    toy, asked = toy_hub
    encoder = find_encoder(read_checkpoint(f'timm:{NAME}'))
    assert asked == [NAME]
    assert (encoder.kind, encoder.img_size, encoder.num_heads) == ('timm ViT', (32, 32), 4)
    assert encoder.mean == (123.675, 116.28, 103.53)
    assert encoder.std == (58.395, 57.12, 57.375)
    backbone = make_vit()
    report = load_encoder_weights(backbone, f'timm:{NAME}')
    assert str(report).startswith(f'loaded 45/45 encoder tensors of timm:{NAME} [timm ViT], ')
    assert report.hash == tensors_hash(encoder.state)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(backbone(x)[0], toy.double().forward_features(x), rtol=1e-6, atol=1e-9)


def test_default_tag_is_made_explicit(toy_hub):
    read_checkpoint('timm:vit_base_patch16_224')
    assert toy_hub[1] == ['vit_base_patch16_224.augreg2_in21k_ft_in1k']


def test_row_tells_name_and_hash(toy_hub):
    row = result_row(
        f'timm:{NAME}',
        'abc',
        read_run_facts(f'timm:{NAME}'),
        data='d',
        task='knn',
        labels='all',
        metric='accuracy',
        value=1.0,
        seed=0,
        protocol='',
    )
    assert (row.checkpoint, row.checkpoint_hash, row.method) == (f'timm:{NAME}', 'abc', f'timm:{NAME}')


@pytest.mark.parametrize('name, fits', [(NAME, False), ('vit_base_patch16_224.augreg_in1k', True)])
def test_statistics_of_the_name_are_checked(toy_hub, name, fits):
    """MAE's are ImageNet's; augreg's are 0.5, which are BootMAE's."""
    cfg = load_config('configs/cls/bootmae_debug_finetune.py')
    cfg.model.backbone.update(arch=dict(embed_dims=24, depth=3, num_heads=4), patch_size=8, img_size=32)
    if fits:
        apply_init(cfg, f'timm:{name}')
        assert cfg.model.backbone.init_cfg == dict(type='EncoderWeights', checkpoint=f'timm:{name}', source='online')
    else:
        with pytest.raises(ValueError, match=rf'timm:{NAME} was made with mean \[123.675, 116.28, 103.53\]'):
            apply_init(cfg, f'timm:{name}')


@pytest.mark.parametrize(
    'name, message',
    [
        (
            'vit_base_patch16_224.mea',
            r"no weights named 'vit_base_patch16_224.mea'; near names: vit_base_patch16_224.mae,",
        ),
        ('vitbase16_mae', 'near names: vit_base_patch16_224.mae '),
        ('swin_tiny_patch4_window7_224.ms_in1k', 'is not a plain ViT: it is a SwinTransformer'),
        ('vit_small_patch14_reg4_dinov2.lvd142m', 'it has a ls1.*no class token, or more tokens'),
        ('vit_base_patch16_clip_quickgelu_224.openai', r'it has a norm_pre; its activation is QuickGELU'),
    ],
)
def test_refused_before_anything_is_downloaded(toy_hub, name, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(f'timm:{name}')
    assert not toy_hub[1]


def test_plain_models_are_taken():
    for name in (NAME, 'deit_base_patch16_224.fb_in1k', 'vit_large_patch16_224.augreg_in21k_ft_in1k'):
        with torch.device('meta'):
            assert hub.plain_faults(timm.create_model(name)) == []


def test_hidden_differences_are_found():
    """Names and shapes of weights do not reveal these differences."""
    small = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=4)
    changes = [
        (dict(act_layer=torch.nn.ReLU), 'activation is ReLU'),
        (dict(norm_layer=partial(torch.nn.LayerNorm, eps=1e-5)), 'eps=1e-05'),
        (dict(no_embed_class=True), 'no position'),
        (dict(qkv_bias=False), 'no biases'),
    ]
    with torch.device('meta'):
        for change, fault in changes:
            (found,) = hub.plain_faults(VisionTransformer(**small, **change))
            assert fault in found


def test_no_network(monkeypatch):
    def unreachable(name, pretrained):
        raise ConnectionError('Name or service not known')

    monkeypatch.setattr(timm, 'create_model', unreachable)
    with pytest.raises(
        FileNotFoundError,
        match=rf'timm:{NAME} could not be downloaded \(ConnectionError: Name or '
        rf'service not known\).*convert_checkpoint.py timm:{NAME} --to timm {NAME}.safetensors',
    ):
        hub.download(timm, NAME)


def test_export_of_a_name_keeps_what_is_known(toy_hub, tmp_path, make_vit):
    """An exported file keeps the statistics and the name, for a machine without network."""
    from bootmae.checkpoints import convert

    convert(f'timm:{NAME}', 'timm', tmp_path / 'a.safetensors')
    content = read_checkpoint(tmp_path / 'a.safetensors')
    assert content['meta']['bootmae']['method'] == f'timm:{NAME}'
    direct, copied = find_encoder(read_checkpoint(f'timm:{NAME}')), find_encoder(content)
    assert (copied.mean, copied.num_heads) == (direct.mean, direct.num_heads)
    assert {key: value.tolist() for key, value in copied.state.items()} == {
        key: value.tolist() for key, value in direct.state.items()
    }


def test_bin_files_of_the_hub(toy_hub, tmp_path, make_vit):
    torch.save(toy_hub[0].state_dict(), tmp_path / 'pytorch_model.bin')
    report = load_encoder_weights(make_vit(), tmp_path / 'pytorch_model.bin')
    assert (report.kind, report.loaded) == ('timm ViT', 45)
