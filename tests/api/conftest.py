"""A folder as users have it: a run of the debug config, a few images, and labeled images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bootmae
from bootmae.api.training import build
from bootmae.config.load import find_config
from bootmae.data.embedded import photo

QUIET = {'log_level': 'ERROR'}


def save_pretraining(path: Path, name: str) -> torch.nn.Module:
    """Write a checkpoint of a BootMAE config with random weights, as its run does, and return the model."""
    model = build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if not key.endswith('pos_embed'):
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    vit = model.backbone
    facts = dict(
        config=f'configs/pretrain/{find_config(name).name}',
        method='BootMAE',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        img_size=list(vit.img_size),
        num_heads=vit.num_heads,
    )
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=2, iter=10, bootmae=facts)), path)
    return model


@pytest.fixture(scope='session')
def home(tmp_path_factory) -> Path:
    """``work_dirs/bootmae_debug`` (trained), ``cat.jpg``, ``dog.jpg``, ``images`` and ``labeled/{train,val}``."""
    folder = tmp_path_factory.mktemp('home')
    bootmae.train('bootmae_debug', work_dir=folder / 'work_dirs/bootmae_debug', options=QUIET)
    for name, source in (('cat', 'chelsea'), ('dog', 'coffee')):
        Image.fromarray(photo(source)).resize((90, 60)).save(folder / f'{name}.jpg')
    rng = np.random.default_rng(0)
    for split, count in (('train', 5), ('val', 3)):
        for name in ('grass', 'sky'):
            (folder / 'labeled' / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.normal(110, 60, (40 + 7 * index, 60 - 5 * index, 3)).clip(0, 255)
                Image.fromarray(pixels.astype('uint8')).save(folder / 'labeled' / split / name / f'{index}.png')
    (folder / 'images').symlink_to(folder / 'labeled' / 'train')
    return folder


@pytest.fixture(scope='session')
def encoder(home):
    return bootmae.load_encoder(home / 'work_dirs/bootmae_debug/epoch_2.pth')


@pytest.fixture
def api_checkpoint(tmp_path):
    """``api_checkpoint(name)``: a checkpoint of this BootMAE config with random weights."""

    def write(name: str) -> Path:
        save_pretraining(tmp_path / f'{name}.pth', name)
        return tmp_path / f'{name}.pth'

    return write
