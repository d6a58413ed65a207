"""tools/visualize.py: pictures of a checkpoint, where they go, and errors in one line."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from calling import call_tool
from mmpretrain.registry import MODELS
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from bootmae.checkpoints import find_encoder
from bootmae.commands.visualize import DrawOptions, cover, draw_reconstruction, load_images, prepare, targets_of
from bootmae.config.encoder import statistics_of
from bootmae.config.load import load_config
from bootmae.data.embedded import photo
from bootmae.visualization.grids import HEADING

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/pretrain/bootmae_debug.py'


@pytest.fixture
def run_file(tmp_path, randomize):
    model = randomize(MODELS.build(load_config(ROOT / CONFIG).model.to_dict()))
    path = tmp_path / 'epoch_2.pth'
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(
                bootmae=dict(
                    config=CONFIG, method='BootMAE', mean=[127.5] * 3, std=[127.5] * 3, img_size=[32, 32], num_heads=3
                )
            ),
        ),
        path,
    )
    return path


@pytest.fixture
def timm_file(tmp_path, randomize):
    vit = randomize(VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0))
    torch.save(dict(model=vit.state_dict()), tmp_path / 'vit.pth')
    return tmp_path / 'vit.pth'


def call(*args) -> int:
    return call_tool('visualize', *args)


def tile(path: Path, row: int, column: int, size: int) -> np.ndarray:
    """A picture of the grid, RGB."""
    pixels = np.asarray(Image.open(path).convert('RGB'))
    top, left = HEADING + row * (size + 4), column * (size + 4)
    return pixels[top : top + size, left : left + size]


def test_three_pictures(run_file, tmp_path, capsys):
    assert call(run_file, '--images', 'digits', '--count', 2, '--out', tmp_path / 'p') == 0
    paths = [tmp_path / 'p' / f'{kind}.png' for kind in ('reconstruction', 'attention', 'pca')]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    images = load_images(['digits'], 32, 2)
    for path in paths:
        for row in range(2):  # 32 pixels are enlarged 4 times (2 at 5: 144 / 32)
            assert np.array_equal(tile(path, row, 0, 128)[::4, ::4], images[row])
    shown, masked = (tile(paths[0], 0, column, 128)[::4, ::4] for column in (2, 1))
    visible = (masked != 128).any(-1).reshape(8, 4, 8, 4).any((1, 3))
    assert visible.sum() <= 16
    visible = visible.repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(shown[visible], images[0][visible])
    assert not np.array_equal(shown[~visible], images[0][~visible])


def test_seed_draws_the_masks(run_file, tmp_path):
    def draw(seed: int) -> np.ndarray:
        return np.asarray(
            Image.open(
                io.BytesIO(draw_reconstruction(DrawOptions(str(run_file), images=('digits',), count=1, seed=seed)))
            )
        )

    assert np.array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


def test_momentum_encoder(run_file, capsys):
    state = torch.load(run_file, weights_only=True)['state_dict']
    found = prepare(DrawOptions(str(run_file), images=('digits',), count=1, source='momentum', block=0))
    assert torch.equal(found.model.blocks[0].mlp.fc1.weight, state['momentum.blocks.0.mlp.fc1.weight'])
    assert found.block_name == '0 of 0 to 1'
    assert call(run_file, '--what', 'reconstruction', '--source', 'momentum') == 2
    assert 'the decoders belong to the online encoder' in capsys.readouterr().err


@pytest.mark.parametrize(
    'args, message',
    [
        (['--what', 'reconstruction'], 'vit.pth is a file of kind [timm ViT] and has no decoder to reconstruct with'),
        ([], 'has no decoder to reconstruct with'),
        (['--what', 'pca', '--block', '2'], 'vit.pth was not loaded: --block 2: the encoder has the blocks 0 to 1'),
        (['--what', 'pca', '--size', '30'], 'image size (30, 30) is not a multiple of the patch size (8, 8)'),
        (['--what', 'pca', '--count', '0'], '--count 0: draw at least one image'),
        (['--what', 'pca', '--images', 'gone'], 'gone does not exist'),
        (['--what', 'pca', '--cfg-options', 'a.b=1'], '--cfg-options change a config, and the file records none'),
        (['--what', 'pca', '--images', 'vit.pth'], 'vit.pth cannot be decoded as an image'),
    ],
)
def test_errors_are_one_line_and_leave_no_picture(timm_file, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert call('vit.pth', '--out', 'p', *args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'p').exists()


def test_what_a_file_does_not_tell_is_said(timm_file, tmp_path):
    found = prepare(DrawOptions(str(timm_file), images=('digits',), count=2))
    assert 'does not record its input statistics: ImageNet' in found.notes
    assert 'number of heads: 1 assumed' in found.notes
    image = found.images[0, 3, 5].astype(float)
    assert found.inputs[0, :, 3, 5].tolist() == pytest.approx(
        ((image - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]).tolist(), abs=1e-5
    )
    half = prepare(DrawOptions(str(timm_file), images=('digits',), count=2, statistics='half', heads=1))
    assert half.notes == ''
    assert half.inputs[0, 0, 3, 5].item() == pytest.approx(image[0] / 127.5 - 1, abs=1e-6)


def test_statistics_that_contradict_the_file(run_file):
    encoder = find_encoder(torch.load(run_file, weights_only=True))
    assert statistics_of(encoder, 'half')[0] == ((127.5,) * 3,) * 2
    with pytest.raises(ValueError, match='--statistics imagenet, but the run normalized with mean'):
        statistics_of(encoder, 'imagenet')


def test_where_pictures_go(tmp_path):
    one, both = ['pca'], ['pca', 'attention']
    assert targets_of('timm:vit.mae', one, None) == dict(pca=Path('work_dirs/visualize/vit.mae/pca.png'))
    assert targets_of('runs/boot/epoch_3.pth', one, None)['pca'].parent.name == 'boot-epoch_3'
    cell = 'demo/pretrain-photos/mae-0/run/epoch_14.pth'
    assert targets_of(cell, one, None)['pca'].parent.name == 'pretrain-photos-mae-0-epoch_14'
    assert targets_of('a.pth', one, 'x/y.png') == dict(pca=Path('x/y.png'))
    assert targets_of('a.pth', both, 'x/y.png')['attention'] == Path('x/y-attention.png')


def test_images(tmp_path):
    for index in range(5):
        (tmp_path / 'f').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / 'f' / f'{index}.png'), np.full((20, 30, 3), (50 * index, 0, 7), dtype=np.uint8))
    shown = load_images([str(tmp_path / 'f')], (16, 16), 3)
    assert shown.shape == (3, 16, 16, 3)
    assert shown[:, 0, 0].tolist() == [[7, 0, 0], [7, 0, 50], [7, 0, 150]], 'RGB, spread evenly'
    assert load_images([str(tmp_path / 'f' / '1.png')], (8, 8), 3)[:, 0, 0].tolist() == [[7, 0, 50]]
    assert np.array_equal(load_images(['embedded'], (512, 512), 18)[0], photo('astronaut'))
    assert len(load_images(['embedded'], 48, 4)) == 4


def test_cover_cuts_at_the_center():
    image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    assert np.array_equal(cover(image, (4, 4)), image[:, 2:6])
    assert np.array_equal(cover(image, (4, 8)), image)
    assert cover(image, (5, 3)).shape == (5, 3, 3)
