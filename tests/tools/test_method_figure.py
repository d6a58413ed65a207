"""The figure of README.md: the stored files are what is drawn, and what is drawn are the facts of the method."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mmengine.config import Config

from pages.method_figure import BLOCKS, FOLDER, SIDE, figures, figures_behind, masked_patches, patches

ROOT = Path(__file__).resolve().parents[2]
DRAWN = figures()
SVG = '{http://www.w3.org/2000/svg}'


def test_the_stored_files_are_what_is_drawn(tmp_path):
    assert not figures_behind(ROOT), 'run tools/zoo.py --write'
    assert figures_behind(tmp_path) == {tmp_path / path: text for path, text in DRAWN.items()}


def test_mask_and_blocks_are_those_of_the_recipe():
    model = Config.fromfile(ROOT / 'configs' / 'pretrain' / 'bootmae_vitb.py').model
    assert masked_patches().sum() == model.masking.num_masked
    assert SIDE * model.backbone.patch_size == model.backbone.img_size
    for path, text in DRAWN.items():
        bars = [color for width, color in re.findall(r'width="(\d+)" height="44" rx="2" fill="(\S+?)"', text)]
        assert len(bars) == 2 * BLOCKS, path
        common = max(set(bars), key=bars.count)
        assert [number for number, color in enumerate(bars) if color != common] == [
            model.pixel_decoder.tap,
            model.feature_decoder.tap,
        ]
        assert f'block {model.pixel_decoder.tap}' in text
        assert f'block {model.feature_decoder.tap}' in text


def test_neighbors_in_a_row_are_one_rectangle():
    mask = masked_patches() & False
    mask[2, 3:5] = mask[4, 0] = mask[4, 13] = True
    assert 'd="M3 2h2v1h-2zM0 4h1v1h-1zM13 4h1v1h-1z"' in patches(mask, '#000')


@pytest.mark.parametrize('path', DRAWN, ids=lambda path: path.name)
def test_texts_are_inside_the_figure(path):
    root = ElementTree.fromstring(DRAWN[path])
    width, height = map(float, root.attrib['viewBox'].split()[2:])
    texts = root.findall(f'{SVG}text')
    assert len(texts) > 10
    for text in texts:
        x, y, wide = float(text.attrib['x']), float(text.attrib['y']), 8 * len(text.text)  # generous: 14 px letters
        left = {'start': x, 'middle': x - wide / 2, 'end': x - wide}[text.attrib['text-anchor']]
        assert 0 <= left <= width - wide, text.text
        assert 12 <= y <= height - 4, text.text


def test_the_readme_shows_each_file():
    shown = re.findall(r'srcset="(\S+?)"|<img src="(\S+?)"', (ROOT / 'README.md').read_text(encoding='utf-8'))
    assert {name for pair in shown for name in pair if name.startswith(f'{FOLDER}/method')} == {
        path.as_posix() for path in DRAWN
    }
