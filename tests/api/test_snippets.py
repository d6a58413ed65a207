"""Python code in docs runs as it stands: the doctests, the blocks of docs/python.md, and a first session."""

import doctest
import re
import shutil
import textwrap
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import bootmae
from bootmae.places import REPOSITORY

BLOCK = re.compile(r'(<!-- not run[^\n]*-->\n)?```python\n(.*?)```', re.DOTALL)
# The first session that a user is promised; names are replaced by what the test has.
SESSION = """
import bootmae

encoder = bootmae.load_encoder('work_dirs/bootmae_vitb/epoch_800.pth')   # any format that --init knows, also 'timm:NAME'
features = bootmae.extract_features(encoder, ['cat.jpg', 'dog.jpg'])     # (2, D) float32; also PIL images, arrays, a folder
maps = encoder.feature_maps(images)                                      # dense features, any size that is a multiple of the patch
model = bootmae.build('bootmae_vitb')                                    # the algorithm of a config by name
bootmae.train('bootmae_small_data', data='/my/images', work_dir='runs/a')
print(bootmae.evaluate_knn(encoder, train='/my/labeled/train', test='/my/labeled/val'))
"""  # noqa: E501
REPLACED = {
    'work_dirs/bootmae_vitb/epoch_800.pth': 'work_dirs/bootmae_debug/epoch_2.pth',
    "'bootmae_small_data', data='/my/images'": "'bootmae_small_data_cpu', data='images'",
    "work_dir='runs/a'": "work_dir='runs/a', max_epochs=5",
    '/my/': '',
}


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """A copy of the user's folder as the working directory."""
    shutil.copytree(home, tmp_path / 'home', symlinks=True)
    monkeypatch.chdir(tmp_path / 'home')
    return tmp_path / 'home'


def add_images(folder, count: int) -> None:
    rng = np.random.default_rng(1)
    folder.unlink()
    folder.mkdir()
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(folder / f'{index}.png')


@pytest.mark.slow
def test_a_first_session(here, capfd):
    code = SESSION
    for before, after in REPLACED.items():
        assert before in code
        code = code.replace(before, after)
    add_images(here / 'images', 64)
    names = dict(images=torch.zeros(1, 3, 64, 96))
    exec(code, names)
    assert names['features'].shape == (2, 48)
    assert names['features'].dtype == torch.float32
    assert names['maps'].shape == (1, 48, 16, 24)
    assert type(names['model']) is bootmae.BootMAE
    assert names['model'].backbone.embed_dims == 768
    assert (here / 'runs' / 'a' / 'epoch_5.pth').is_file()
    said = capfd.readouterr().out
    assert re.search(r'^[\d.]+$', said.splitlines()[-1])
    assert 'Saving checkpoint at 5 epochs' in said  # the log of a training


@pytest.mark.slow
def test_the_example_of_the_readme(here, capfd):
    page = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
    [(skipped, code)] = BLOCK.findall(page)
    for before, after in list(REPLACED.items())[1:]:
        assert before in code
        code = code.replace(before, after)
    add_images(here / 'images', 64)
    names: dict = {}
    exec(code, names)
    assert not skipped
    assert names['features'].shape == (2, 64)  # of the micro model that the block has trained
    assert (here / 'runs' / 'a' / 'epoch_5.pth').is_file()
    assert re.search(r'^[\d.]+$', capfd.readouterr().out.splitlines()[-1])


def test_the_blocks_of_the_page(here):
    page = (REPOSITORY / 'docs' / 'python.md').read_text(encoding='utf-8')
    blocks = [text for skipped, text in BLOCK.findall(page) if not skipped]
    assert len(blocks) == 8
    names: dict = {}
    for block in blocks:
        block = block.replace('max_epochs=1)', "max_epochs=1, options={'log_level': 'ERROR'})")
        exec(textwrap.dedent(block), names)
    assert repr(names['encoder']) in page
    assert names['last'] == here / 'runs' / 'a' / 'epoch_1.pth'
    assert names['logits'].shape == (2, 10)
    assert names['maps'].shape == (2, 48, 8, 16)
    assert names['large'].vit.grid == (16, 16)


@pytest.mark.parametrize(
    ('name', 'examples'), [('', 3), ('.api.encoder', 10), ('.api.preprocessing', 3), ('.api.training', 4)]
)
def test_doctests(here, name, examples):
    module = import_module(f'bootmae{name}')
    done = doctest.testmod(module, extraglobs=dict(bootmae=bootmae, numpy=np, torch=torch))
    assert done.failed == 0
    assert done.attempted == examples
