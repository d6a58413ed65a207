"""Every wrong file raises an error with reason and remedy, and the backbone keeps its weights."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from wrong_files import MOMENTUM, WRONG_FILES, Size, below, encoder, facts, fused, run

from bootmae.checkpoints import load_encoder_weights
from bootmae.checkpoints.heads import model_heads
from bootmae.config.model import build_model

SIZE = Size()
REMEDY = 'Use the config|another file|use an older file|download it again|Convert it|save a dict'


def build(**changes):
    arch = dict(embed_dims=SIZE.embed_dims, depth=SIZE.depth, num_heads=SIZE.num_heads)
    return MODELS.build(
        dict(
            type='TransferViT',
            arch=arch,
            img_size=SIZE.img_size,
            patch_size=SIZE.patch_size,
            relative_positions=True,
            layer_scale=1.0,
            out_indices=(0, 1, 2, 3),
            pyramid=dict(type='TapPyramid', norm_cfg=dict(type='BN')),
        )
        | changes
    )


@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('name', WRONG_FILES)
def test_wrong_files_are_refused(tmp_path, name, plain):
    make, message = WRONG_FILES[name]
    path = make(tmp_path, SIZE)
    model = build(relative_positions=False, layer_scale=None) if plain else build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_encoder_weights(model, path, 'momentum' if name in MOMENTUM else 'online')
    text = str(error.value)
    assert str(path) in text
    assert any(word in text for word in REMEDY.split('|'))
    assert '\n' not in text
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_file_that_they_are_made_from_is_right(tmp_path):
    """The same file without a fault loads, so each error above is due to its own fault."""
    model = build()
    report = load_encoder_weights(model, run()(tmp_path, SIZE))
    weights = encoder(SIZE)
    assert report.loaded == len(weights) - 2
    assert report.unused == ['norm.bias', 'norm.weight']
    assert torch.equal(model.blocks[3].mlp.fc2.weight, weights['blocks.3.mlp.fc2.weight'])


@pytest.mark.parametrize(
    'prefix, shape, kind',
    [
        ('encoder.', fused, "timm ViT below 'encoder.'"),
        ('model.', fused, "timm ViT below 'model.'"),
        ('net.backbone.', dict, "authors' fine-tuned BootMAE below 'net.backbone.'"),
        ('backbone.', fused, "timm ViT below 'backbone.'"),
        ('module.', fused, 'timm ViT'),  # the wrapper of a parallel run, known
    ],
)
def test_one_encoder_below_one_prefix_is_found(tmp_path, prefix, shape, kind):
    weights = encoder(SIZE)
    torch.save(dict(state_dict=below(prefix, shape(weights))), tmp_path / 'a.pth')
    model = build()
    assert load_encoder_weights(model, tmp_path / 'a.pth').kind == kind
    assert torch.equal(model.blocks[1].attn.proj.weight, weights['blocks.1.attn.proj.weight'])


def test_the_recorded_heads_must_be_the_model_s(tmp_path):
    """Weights do not reveal the number of heads, and other heads would silently give other features."""
    weights = below('backbone.', encoder(SIZE))
    for heads, fits in ((4, True), (2, False), (None, True)):
        torch.save(dict(state_dict=weights, meta=facts(SIZE, num_heads=heads) if heads else {}), tmp_path / 'a.pth')
        if fits:
            load_encoder_weights(build(), tmp_path / 'a.pth')
        else:
            with pytest.raises(ValueError, match="it has 2 attention heads, the model's arch has 4"):
                load_encoder_weights(build(), tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'recorded, message',
    [
        (dict(num_heads=2), 'with model.backbone num_heads=2, but this config has 4: it would load and compute'),
        (dict(img_size=[32, 64]), r'with model.backbone img_size=\[32, 64\], but this config has \[64, 32\]'),
    ],
)
def test_a_whole_model_must_be_the_recorded_one(tmp_path, recorded, message):
    """Transposed images and other heads have weights of the same shapes."""
    vit = dict(arch=dict(embed_dims=24, depth=2, num_heads=4), img_size=(64, 32), patch_size=8)
    config = Config(dict(model=dict(type='mmpretrain.ImageClassifier', backbone=dict(vit, type='mmpretrain.PlainViT'))))
    file, right = tmp_path / 'a.pth', dict(num_heads=4, img_size=[64, 32])
    weights = build_model(config).state_dict()
    torch.save(dict(state_dict=weights, meta=dict(bootmae=right)), file)
    build_model(config, file)
    torch.save(dict(state_dict=weights, meta=dict(bootmae=right | recorded)), file)
    with pytest.raises(ValueError, match=f'a.pth was trained {message}'):
        build_model(config, file)


def test_both_kinds_of_backbone_tell_their_heads():
    """The number of heads that ProvenanceHook records for our ViT and for mmpretrain's."""
    arch = dict(embed_dims=24, num_layers=2, num_heads=6, feedforward_channels=48)
    assert model_heads(build()) == SIZE.num_heads
    assert model_heads(MODELS.build(dict(type='mmpretrain.MAEViT', arch=arch, img_size=32, patch_size=8))) == 6
