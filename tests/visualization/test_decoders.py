"""Loading pretraining models from files with a decoder, and errors about files without one."""

import argparse
import copy
from functools import cache

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

from bootmae.checkpoints import convert
from bootmae.checkpoints.identify import IMAGENET_MEAN, IMAGENET_STD
from bootmae.checkpoints.keys import MMPRETRAIN, rename, to_authors
from bootmae.config.load import load_config
from bootmae.config.model import build_model
from bootmae.models.positions import resize_positions
from bootmae.visualization import decoders
from bootmae.visualization.decoders import load_decoder, scale_masking
from bootmae.visualization.reconstruct import draw_masks, reconstruct

BOOT, MAE = 'configs/pretrain/bootmae_debug.py', 'configs/pretrain/mae_debug.py'  # 32 pixels, patches of 4
FACTS = {
    BOOT: dict(mean=[127.5] * 3, std=[127.5] * 3, img_size=[32, 32], num_heads=3, method='BootMAE', config=BOOT),
    MAE: dict(
        mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), img_size=[32, 32], num_heads=3, method='MAE', config=MAE
    ),
}


@pytest.fixture(autouse=True)
def read_configs_once(monkeypatch):
    monkeypatch.setattr(decoders, 'load_config', lambda path, options=None: copy.deepcopy(parsed(path)))


@cache
def parsed(path: str):
    return load_config(path)


@pytest.fixture
def save_run(tmp_path, randomize):
    """``save_run(config)``: the file of a run of a debug config with random weights, and its state."""

    def save(config: str):
        model = randomize(MODELS.build(parsed(config).model.to_dict()))
        if config == BOOT:
            model.feature_decoder.pos_embed.copy_(model.backbone.pos_embed)
        path = tmp_path / 'epoch_2.pth'
        torch.save(dict(state_dict=model.state_dict(), optimizer={}, meta=dict(bootmae=FACTS[config])), path)
        return path, model.state_dict()

    with torch.no_grad():
        yield save


@pytest.fixture
def toy_mae(randomize):
    """mmpretrain's MAE with 16 decoder heads, as all published ones have."""
    model = randomize(
        MODELS.build(
            dict(
                type='MAE',
                data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=IMAGENET_MEAN, std=IMAGENET_STD),
                backbone=dict(
                    type='MAEViT',
                    img_size=32,
                    patch_size=8,
                    arch=dict(embed_dims=24, num_layers=2, num_heads=4, feedforward_channels=48),
                ),
                neck=dict(
                    type='MAEPretrainDecoder',
                    num_patches=16,
                    patch_size=8,
                    embed_dim=24,
                    decoder_embed_dim=32,
                    decoder_depth=2,
                    decoder_num_heads=16,
                ),
                head=dict(
                    type='MAEPretrainHead',
                    norm_pix=True,
                    patch_size=8,
                    loss=dict(type='PixelReconstructionLoss', criterion='L2'),
                ),
            )
        )
    )
    return model.eval()


def facebook_names(state: dict) -> dict:
    """mmpretrain's names as facebookresearch's."""
    out = rename(
        {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')},
        MMPRETRAIN,
        back=True,
    )
    for key, value in state.items():
        if key.startswith('neck.'):
            key = (
                key.removeprefix('neck.')
                .replace('.ffn.layers.0.0.', '.mlp.fc1.')
                .replace('.ffn.layers.1.', '.mlp.fc2.')
                .replace('.ln1.', '.norm1.')
                .replace('.ln2.', '.norm2.')
            )
            out[f'decoder_norm{key[3:]}' if key.startswith('ln1.') else key] = value
    return out


def pictures(size: int = 32) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (2, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize('config', [BOOT, MAE])
def test_run_finds_its_config(save_run, config):
    path, _ = save_run(config)
    found = load_decoder(path)
    assert (found.img_size, found.patch_size) == ((32, 32), (4, 4))
    assert found.normalized
    model = build_model(parsed(config), path).eval()
    ids_shuffle, num_masked = draw_masks(found.model, 2, seed=3)
    assert num_masked == 48
    assert np.array_equal(np.sort(ids_shuffle, axis=1), [range(64)] * 2)
    assert np.array_equal(ids_shuffle, draw_masks(model, 2, seed=3)[0])
    if config == BOOT:
        assert np.array_equal(ids_shuffle[0], model.masking.draw_ids_shuffle(np.random.RandomState(3)))
    for each in (model, found.model):
        shown = reconstruct(each, pictures(), ids_shuffle, 48, (4, 4)).astype(int)
        first = shown if each is model else first  # noqa: F821
    assert np.abs(first - shown).max() <= 1, 'the key bias, which cancels, is lost on the way'


@pytest.mark.parametrize('config', [BOOT, MAE])
def test_other_size(save_run, config):
    path, state = save_run(config)
    found = load_decoder(path, size=(48, 64))
    ids_shuffle, num_masked = draw_masks(found.model, 1)
    assert (ids_shuffle.shape[1], num_masked) == (192, 144)
    names = (
        ['backbone.pos_embed', 'momentum.pos_embed', 'pixel_decoder.pos_embed', 'feature_decoder.pos_embed']
        if config == BOOT
        else ['backbone.pos_embed', 'neck.decoder_pos_embed']
    )
    loaded = found.model.state_dict()
    for name in names:
        assert torch.equal(loaded[name], resize_positions(state[name], (8, 8), (12, 16)))
    images = np.zeros((1, 48, 64, 3), dtype=np.uint8)
    assert reconstruct(found.model, images, ids_shuffle, 144, (4, 4)).shape == images.shape


def test_masks_of_another_size():
    """Areas that the config leaves to the grid (block_area=None) stay so."""
    for area, scaled in (((4, 8), [9.0, 18.0]), (None, None)):
        masking = dict(num_masked=48, num_block=39, block_area=area)
        scale_masking(masking, 2.25)
        assert masking == dict(num_masked=108, num_block=88, block_area=scaled)


def test_config_must_be_known_and_right(save_run, tmp_path):
    path, state = save_run(BOOT)
    with pytest.raises(ValueError, match="is not a checkpoint of this config's MAE"):
        load_decoder(path, MAE)
    torch.save(dict(state_dict=state, meta=dict(bootmae=FACTS[BOOT] | dict(config='configs/gone.py'))), path)
    with pytest.raises(ValueError, match='does not record a config that exists here: give --config'):
        load_decoder(path)
    assert load_decoder(path, BOOT).model.masking.num_masked == 48


def test_lost_momentum_encoder_does_not_matter_here(save_run):
    path, state = save_run(BOOT)
    torch.save(dict(state_dict={key: value for key, value in state.items() if not key.startswith('momentum.')}), path)
    found = load_decoder(path, BOOT)
    assert torch.equal(found.model.pixel_decoder.head.weight, state['pixel_decoder.head.weight'])


def test_authors_file(save_run):
    path, state = save_run(BOOT)
    online, momentum = to_authors(state)
    torch.save(dict(model=online, model_ema=momentum), path)
    loaded = load_decoder(path, BOOT).model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize('names', [dict, facebook_names])
def test_mae_of_other_projects(toy_mae, tmp_path, names):
    """The model is built from the weights alone and gives the same predictions."""
    path = tmp_path / 'mae.pth'
    torch.save(dict(model=names(toy_mae.state_dict()), args=argparse.Namespace(norm_pix_loss=True)), path)
    found = load_decoder(path, num_heads=4)
    assert found.normalized
    ids_shuffle, num_masked = draw_masks(found.model, 2)
    assert (ids_shuffle.shape, num_masked) == ((2, 16), 12)
    shown, wanted = (
        reconstruct(each, pictures(), ids_shuffle, 12, (8, 8)).astype(int) for each in (found.model, toy_mae)
    )
    assert np.abs(shown - wanted).max() <= 1
    with pytest.raises(ValueError, match='a width of 24 is unusual: give --heads'):
        load_decoder(path)


def test_target_of_mae_must_be_known(toy_mae, tmp_path):
    path = tmp_path / 'mae.pth'
    torch.save(dict(model=facebook_names(toy_mae.state_dict())), path)
    with pytest.raises(ValueError, match='does not record whether.*--target normalized.*--target pixels'):
        load_decoder(path, num_heads=4)
    for target in ('normalized', 'pixels'):
        assert load_decoder(path, target=target, num_heads=4).normalized == (target == 'normalized')


def test_what_contradicts_the_file_is_refused(save_run, toy_mae, tmp_path):
    path, _ = save_run(BOOT)
    for given, message in (
        (dict(num_heads=7), '--heads 7, but the encoder of .* has 3: leave --heads out'),
        (dict(target='pixels'), '--target pixels, but .* was trained with the other target'),
        (dict(statistics='imagenet'), '--statistics imagenet, but the run normalized with mean'),
    ):
        with pytest.raises(ValueError, match=message):
            load_decoder(path, **given)
    assert load_decoder(path, num_heads=3, target='normalized', statistics='half').normalized
    path = tmp_path / 'mae.pth'
    args = argparse.Namespace(norm_pix_loss=True)
    torch.save(dict(model=facebook_names(toy_mae.state_dict()), args=args), path)
    with pytest.raises(ValueError, match='--target pixels, but .* was trained with the other target'):
        load_decoder(path, target='pixels', num_heads=4)
    with pytest.raises(ValueError, match='--cfg-options change a config, but .* records none that exists here'):
        load_decoder(path, num_heads=4, options={'model.backbone.patch_size': 8})
    with pytest.raises(ValueError, match='--statistics half, but the run normalized with mean'):
        load_decoder(path, num_heads=4, statistics='half')


def test_files_without_decoder_are_refused(save_run, toy_mae, tmp_path):
    """The message names the kind of file and the remedy."""
    path, state = save_run(BOOT)
    exported, classifier, bare = (tmp_path / f'{name}.pth' for name in ('exported', 'classifier', 'mae_pretrain'))
    convert(path, 'timm', exported)
    torch.save(
        dict(
            state_dict={key: value for key, value in state.items() if key.startswith('backbone.')},
            meta=dict(bootmae=FACTS[BOOT] | dict(method='ImageClassifier')),
        ),
        classifier,
    )
    facebook = facebook_names(toy_mae.state_dict())
    torch.save(
        dict(model={key: value for key, value in facebook.items() if not key.startswith(('decoder', 'mask'))}), bare
    )
    for file, kind in (
        (exported, r'\[timm ViT, exported from BootMAE run \(online\)\], made by BootMAE,'),
        (classifier, r'\[run of this suite\], made by ImageClassifier,'),
        (bare, r'\[timm ViT\]'),
    ):
        with pytest.raises(
            ValueError,
            match=rf'{file.name} is a file of kind {kind} and has no decoder to reconstruct '
            'with. Reconstructions need a pretraining file.*--what attention pca',
        ):
            load_decoder(file)
