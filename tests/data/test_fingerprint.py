"""The fingerprint of a data set changes with its images and labels, and with nothing else."""

import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset

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


def test_stored_rows_stay_comparable(tmp_path):
    for name in ('a/1.png', 'a/b/2.png', 'c/3.png'):
        path = tmp_path / 'data' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    assert of(tmp_path / 'data') == 'ce6c876290b2'


def test_an_archive_is_the_same_data_as_its_folder(folder):
    for name in ('there/a.tar', 'b.tar'):
        (folder.parent / name).parent.mkdir(exist_ok=True)
        with tarfile.open(folder.parent / name, 'w') as archive:
            archive.add(folder, arcname='.')
        assert of(folder.parent / name) == of(folder)
    (folder / 'a' / '1.png').rename(folder / 'a' / '0.png')
    with tarfile.open(folder.parent / 'c.tar', 'w') as archive:
        archive.add(folder, arcname='top/one')
    assert of(folder) != of(folder.parent / 'b.tar')
    inside = ImageFiles(str(folder.parent / 'c.tar'), labels='folder', split='top/one', pipeline=[])
    assert fingerprint(inside) == of(folder)


def test_relative_and_absolute_paths_can_be_mixed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    parts = [ImageFiles(roots=root, pipeline=[]) for root in ('a', str(folder / 'b'))]
    assert fingerprint(ConcatDataset(parts)) == fingerprint(ImageFiles(roots=str(folder), pipeline=[]))
    assert fingerprint(ImageFiles(roots='.', pipeline=[])) == fingerprint(ImageFiles(roots=str(folder), pipeline=[]))
    with tarfile.open('a.tar', 'w') as archive:
        archive.add('a')
    parts[0] = ImageFiles(roots='a.tar', pipeline=[])
    both = fingerprint(ConcatDataset(parts))
    elsewhere = shutil.copytree(folder, folder.parent / 'two')
    parts = [ImageFiles(roots=str(elsewhere / name), pipeline=[]) for name in ('a.tar', 'b')]
    assert fingerprint(ConcatDataset(parts)) == both


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
