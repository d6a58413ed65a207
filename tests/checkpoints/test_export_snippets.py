"""The loading snippets of docs/transfer.md, each run on an export of a small encoder; features as in this package."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from bootmae.checkpoints import find_encoder, load_encoder_weights, read_checkpoint
from bootmae.checkpoints.export import FORMATS, convert
from bootmae.checkpoints.targets import LISTS, Sizes
from bootmae.results.provenance import REPOSITORY

PAGE = (REPOSITORY / 'docs' / 'transfer.md').read_text(encoding='utf-8')
SECTION = PAGE[PAGE.index('### Load an export') : PAGE.index('### What an export must hold')]
SNIPPETS = {
    name: (text, block)
    for name, text, block in re.findall(r'\*\*(\w+)\*\*(.*?)```python\n(.*?)```', SECTION, re.DOTALL)
}
NAMES = dict(transformers='hf')  # format of a snippet, if it is not its name
ARCH = dict(embed_dims=64, depth=3, num_heads=2, mlp_ratio=3)
SMALL = {  # the same sizes, as the snippets give those of a ViT-B
    "'vit_base_patch16_224'": "'test_vit', depth=3, img_size=32, patch_size=8",
    "arch='base'": 'arch=dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=192)',
    'img_size=224, patch_size=16': 'img_size=32, patch_size=8',
    'VisionTransformer(img_size': 'VisionTransformer(embed_dims=64, num_layers=3, num_heads=2, mlp_ratio=3, img_size',
}
FACTS = dict(mean=[127.5] * 3, std=[63.75] * 3, img_size=[32, 32], num_heads=2, method='BootMAE')


@pytest.fixture(scope='module')
def ours():
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmpretrain.PlainViT', arch=ARCH, img_size=32, patch_size=8)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.pos_embed.requires_grad_(False)
    return model


@pytest.fixture
def file(tmp_path, ours) -> Path:
    state = {f'backbone.{key}': value for key, value in ours.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(bootmae=FACTS)), tmp_path / 'run.pth')
    return tmp_path / 'run.pth'


@pytest.fixture
def load(tmp_path, file, monkeypatch):
    """``load(name)``: the variables of a snippet, after the command that its text gives."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> dict:
        text, code = SNIPPETS[name]
        if command := re.search(r'convert_checkpoint.py FILE --to (\w+) ([\w.]+)', text):
            assert command[1] == NAMES.get(name, name)
            convert(file, command[1], command[2])
        for full, small in SMALL.items():
            code = code.replace(full, small)
        variables: dict = {}
        exec(code, variables)
        return variables

    return run


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tokens(ours, images):
    """Class token and patch tokens after the final norm."""
    with torch.no_grad():
        return ours(images)[0]


def test_every_format_has_a_snippet():
    assert {NAMES.get(name, name) for name in SNIPPETS} == {*FORMATS, 'facebookresearch'}


@torch.no_grad()
def test_timm(load, images, tokens):
    assert_close(load('timm')['model'].eval()(images), tokens[:, 1:].mean(dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mmpretrain(load, images, tokens):
    model = load('mmpretrain')['model']
    model.eval()  # of mmpretrain and mmseg returns nothing
    assert_close(model(images)[0], tokens[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mmseg(load, images, tokens):
    model = load('mmseg')['model']
    model.eval()
    maps = model(images)[0]
    assert_close(maps.flatten(2).transpose(1, 2), tokens[:, 1:], rtol=1e-4, atol=1e-5)


def test_mmdet(load, file):
    """Its loader takes ``model`` of the file; the class is no part of the package, so its names are compared."""
    init = load('mmdet')['model']['backbone']['init_cfg']
    state = CheckpointLoader.load_checkpoint(init['checkpoint'], map_location='cpu')['model']
    encoder = find_encoder(read_checkpoint(file))
    wanted = LISTS['mmdet'](Sizes(encoder, 'mmdet'))
    assert {key: tuple(state[key].shape) for key in wanted} == wanted
    assert torch.equal(state['blocks.2.mlp.fc1.weight'], encoder.state['blocks.2.mlp.fc1.weight'])


def test_authors(load, ours):
    state = load('authors')['state']
    assert torch.equal(state['blocks.2.mlp.fc1.weight'], ours.blocks[2].mlp.fc1.weight)
    assert find_encoder(dict(model=state)).kind.startswith("authors'")


def test_facebookresearch(load):
    """Into a ViT with the names of its ``models_vit.py``, which sets ``global_pool`` and has an ``fc_norm``."""
    load('timm')
    load('facebookresearch')
    state = torch.load('mae.pth')['model']
    theirs = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=2, mlp_ratio=3)
    found = theirs.load_state_dict(state, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (['head.weight', 'head.bias'], [])


def test_safetensors(load, ours):
    state = load('safetensors')['state']
    assert {key.removeprefix('backbone.') for key in state} == set(ours.state_dict())


# --- transformers ---


def test_the_files_beside_the_weights(tmp_path, file):
    assert convert(file, 'hf', tmp_path / 'vit').endswith(
        f'-> {tmp_path}/vit/model.safetensors, config.json, preprocessor_config.json'
    )
    config, images = (
        json.loads((tmp_path / 'vit' / f'{name}config.json').read_text()) for name in ('', 'preprocessor_')
    )
    assert config == dict(
        architectures=['ViTModel'],
        model_type='vit',
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=192,
        hidden_act='gelu',
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        qkv_bias=True,
        image_size=32,
        patch_size=8,
        num_channels=3,
    )
    assert (images['image_mean'], images['image_std']) == ([0.5] * 3, [0.25] * 3)
    assert images['size'] == dict(height=32, width=32)
    with pytest.raises(FileExistsError, match='model.safetensors exists: use another name, or --force'):
        convert(file, 'hf', tmp_path / 'vit')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'config.json').write_text('mine')
    with pytest.raises(FileExistsError, match='config.json exists'):
        convert(file, 'hf', tmp_path / 'other' / 'model.safetensors')
    assert [path.name for path in (tmp_path / 'other').iterdir()] == ['config.json']
    with pytest.raises(FileNotFoundError, match='no folder .*none for vit: create it first'):
        convert(file, 'hf', tmp_path / 'none' / 'vit')


def test_what_the_file_does_not_record(tmp_path, ours):
    """Without the number of heads a folder would compute something else; statistics are left to the user."""
    state = {f'backbone.{key}': value for key, value in ours.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    with pytest.raises(
        ValueError, match='does not record its number of attention heads, which .*vit/config.json needs'
    ):
        convert(tmp_path / 'a.pth', 'hf', tmp_path / 'vit')
    assert not (tmp_path / 'vit').exists()
    assert convert(tmp_path / 'a.pth', 'hf', tmp_path / 'b.safetensors').endswith('b.safetensors')
    convert(tmp_path / 'a.pth', 'hf', tmp_path / 'vit', num_heads=4)
    assert sorted(path.name for path in (tmp_path / 'vit').iterdir()) == ['config.json', 'model.safetensors']
    assert json.loads((tmp_path / 'vit' / 'config.json').read_text())['num_attention_heads'] == 4


def test_a_common_size_does_not_tell_the_heads(tmp_path):
    """MAE-Lite's ViT-Ti has 12 heads and not 3."""
    arch = dict(embed_dims=192, depth=12, num_heads=12)
    state = MODELS.build(dict(type='mmpretrain.PlainViT', arch=arch, img_size=32, patch_size=8)).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='does not record its number of attention heads, .*: give --heads'):
        convert(tmp_path / 'a.pth', 'hf', tmp_path / 'vit')


def test_files_of_overwritten_weights_do_not_stay(tmp_path, file, ours):
    """They would be combined with the new weights."""
    convert(file, 'hf', tmp_path / 'vit')
    torch.save(
        dict(state_dict={f'backbone.{key}': value for key, value in ours.state_dict().items()}), tmp_path / 'b.pth'
    )
    with pytest.raises(ValueError, match='which .*vit/config.json needs: give --heads, or a name with another folder'):
        convert(tmp_path / 'b.pth', 'hf', tmp_path / 'vit' / 'model.safetensors', force=True)
    told = convert(tmp_path / 'b.pth', 'hf', tmp_path / 'vit', force=True, num_heads=2)
    assert told.endswith('; removed preprocessor_config.json, since b.pth does not record its input statistics')
    assert sorted(path.name for path in (tmp_path / 'vit').iterdir()) == ['config.json', 'model.safetensors']


def test_a_folder_is_a_checkpoint(tmp_path, file, ours):
    from bootmae.checkpoints.folders import checkpoint_file

    convert(file, 'hf', tmp_path / 'vit')
    backbone = MODELS.build(dict(type='mmpretrain.PlainViT', arch=ARCH, img_size=32, patch_size=8))
    load_encoder_weights(backbone, checkpoint_file(str(tmp_path / 'vit')))
    assert torch.equal(backbone.pos_embed, ours.pos_embed)
    assert len(load_file(tmp_path / 'vit' / 'model.safetensors')) == 4 + 2 + 3 * 16


@torch.no_grad()
def test_transformers(load, images, tokens):
    """Run by hand with transformers 5.23; it is no requirement."""
    pytest.importorskip('transformers')
    found = load('transformers')
    assert_close(found['model'].eval()(images).last_hidden_state, tokens, rtol=1e-4, atol=1e-5)
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = found['processor'](picture, return_tensors='pt')['pixel_values'][0]
    assert_close(pixels, (picture.float() - 127.5) / 63.75, rtol=1e-4, atol=1e-4)
