"""The fingerprint of a data set changes with its images and labels, and with nothing else."""

import shutil

import numpy as np
import pytest
from PIL import Image

from bootmae.data.embedded import DigitImages
from bootmae.data.fingerprint import fingerprint
from bootmae.data.images import ImageFiles
from bootmae.data.samples import SeededSamples


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(('a/1.png', 'a/2.png', 'b/1.png')):
        path = tmp_path / 'one' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5 + index, 3), index, dtype=np.uint8)).save(path)
    return tmp_path / 'one'


def of(folder) -> str:
    return fingerprint(ImageFiles(roots=str(folder), labels='folder', pipeline=[]))


def test_a_copy_is_the_same_data(folder):
    other = shutil.copytree(folder, folder.parent / 'elsewhere' / 'two')
    assert of(other) == of(folder)
    assert len(of(folder)) == 12


@pytest.mark.parametrize('change', ['rename', 'grow', 'relabel', 'remove'])
def test_changes_show(folder, change):
    before = of(folder)
    if change == 'rename':
        (folder / 'a' / '1.png').rename(folder / 'a' / '3.png')
    elif change == 'grow':
        with (folder / 'a' / '1.png').open('ab') as file:
            file.write(b'x')
    elif change == 'relabel':
        (folder / 'a' / '2.png').rename(folder / 'b' / '2.png')
    else:
        (folder / 'a' / '1.png').unlink()
    assert of(folder) != before


def test_pictures_in_memory():
    def digits(**keys):
        return fingerprint(DigitImages(**dict(split='train', size=8, pipeline=[]) | keys))

    assert digits() == digits()
    assert len({digits(), digits(split='val'), digits(size=9), digits(labels_per_class=3)}) == 4
    wrapped = SeededSamples(DigitImages(split='train', size=8, pipeline=[]))
    assert fingerprint(wrapped) == digits()
