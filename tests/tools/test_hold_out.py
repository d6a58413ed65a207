"""tools/hold_out.py: a division into training and validation images by links, whole or not at all."""

import os
import re
from pathlib import Path

import pytest
from calling import call_tool

from bootmae.commands import hold_out
from bootmae.data.images import ImageFiles

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'hold_out.py'
COUNTS = {'cat': 20, 'dog': 3, 'eel': 9}


def call(*args) -> int:
    return call_tool('hold_out', *args)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'source'
    for name, count in COUNTS.items():
        for number in range(count):
            path = folder / name / ('deep' if number % 3 == 0 else '.') / f'{number:02}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'{name} {number}')
    (folder / 'cat/notes.txt').touch()
    (folder / 'cat/.hidden.jpg').touch()
    return folder


def below(folder):
    """{place below a folder: place of the real file} of all that is not a folder."""
    return {path.relative_to(folder).as_posix(): path.resolve() for path in folder.rglob('*') if not path.is_dir()}


def test_every_image_is_in_exactly_one_part(source, tmp_path, capsys):
    out = tmp_path / 'new/deep/out'
    assert call(source, out, '--share', '0.25') == 0
    found = below(out)
    assert all(target == source / place.split('/', 1)[1] for place, target in found.items())
    images = [path for path in source.rglob('*.jpg') if path.name != '.hidden.jpg']
    assert sorted(found.values()) == sorted(images)
    assert all(not os.path.isabs(os.readlink(out / place)) for place in found)
    assert [sum(place.startswith(f'val/{name}/') for place in found) for name in COUNTS] == [5, 1, 2]
    said = capsys.readouterr().out
    assert '24 images in train, 8 in val, 3 classes' in said
    assert f'(of {source}, share 0.25, seed 0)' in said
    assert os.listdir(out.parent) == ['out']
    assert out.stat().st_mode == source.stat().st_mode, 'a temporary folder is closed to all others'


def test_parts_are_read_as_a_data_set(source, tmp_path):
    out = tmp_path / 'out'
    assert call(source, out, '--seed', '3') == 0
    parts = [ImageFiles(str(out), labels='folder', split=split) for split in ('train', 'val')]
    assert [len(part) for part in parts] == [28, 4]  # a tenth of 20, 3 and 9: 2, at least 1, 1
    for part in parts:
        assert part.metainfo['classes'] == ('cat', 'dog', 'eel')
        for info in map(part.get_data_info, range(len(part))):
            assert Path(info['img_path']).read_text().split()[0] == part.metainfo['classes'][info['gt_label']]


def test_seed_decides(source, tmp_path):
    for name, seed in [('a', 0), ('b', 0), ('c', 1)]:
        assert call(source, tmp_path / name, '--seed', seed) == 0
    assert below(tmp_path / 'a') == below(tmp_path / 'b')
    assert below(tmp_path / 'a').keys() != below(tmp_path / 'c').keys()


def test_again_changes_nothing_and_says_so(source, tmp_path, capsys):
    out = tmp_path / 'out'
    assert call(source, out) == 0
    before = out.stat()
    (out / '.DS_Store').touch()
    capsys.readouterr()
    assert call(source, out) == 0
    assert 'already holds this split: 28 images in train' in capsys.readouterr().out
    assert out.stat().st_ino == before.st_ino


@pytest.mark.parametrize('change', ['seed', 'source', 'file', 'lost', 'copied'])
def test_another_division_is_refused(change, source, tmp_path, capsys):
    out = tmp_path / 'out'
    assert call(source, out) == 0
    link = next(path for path in sorted(out.rglob('*.jpg')))
    if change == 'source':
        (source / 'dog/new.jpg').touch()
    elif change == 'file':
        (out / 'notes.txt').touch()
    elif change in ('lost', 'copied'):
        link.unlink()
    if change == 'copied':
        link.touch()
    before = below(out)
    assert call(source, out, '--seed', int(change == 'seed')) == 2
    assert 'is not empty and does not hold this split' in capsys.readouterr().err
    assert below(out) == before


def test_links_hold_where_folders_are_links(source, tmp_path):
    """Relative links start at the real place of their folder, not at the way that was taken to it."""
    (tmp_path / 'real/er').mkdir(parents=True)
    (tmp_path / 'way').symlink_to(tmp_path / 'real/er')
    (tmp_path / 'photos').symlink_to(source)
    assert call(tmp_path / 'photos', tmp_path / 'way/out') == 0
    assert sorted(below(tmp_path / 'real/er/out').values()) == sorted(source.rglob('[0-9]*.jpg'))


def test_empty_folder_is_filled(source, tmp_path):
    (tmp_path / 'out').mkdir()
    assert call(source, tmp_path / 'out') == 0
    assert len(below(tmp_path / 'out')) == 32


def test_nothing_is_left_when_it_fails_in_the_middle(source, tmp_path, monkeypatch, capsys):
    made = []

    def full(target, link):
        if len(made) == 20:
            raise OSError(28, 'No space left on device', link)
        made.append(link)

    monkeypatch.setattr(hold_out.os, 'symlink', full)
    assert call(source, tmp_path / 'out') == 2
    assert 'No space left' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['source']


@pytest.mark.parametrize('other_seed, code', [(0, 0), (1, 2)])
def test_two_at_once(other_seed, code, source, tmp_path, monkeypatch):
    """The second finds the folder of the first when it renames its own."""
    rename = os.rename

    def late(built, out):
        monkeypatch.setattr(hold_out.os, 'rename', rename)
        assert call(source, out, '--seed', other_seed) == 0
        rename(built, out)

    monkeypatch.setattr(hold_out.os, 'rename', late)
    assert call(source, tmp_path / 'out') == code
    assert sorted(os.listdir(tmp_path)) == ['out', 'source']


def prepare(case, root):
    """Something that cannot be divided: arguments of the tool."""
    for name in ('a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg'):
        (root / 'good' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'good' / name).touch()
    good, out = root / 'good', root / 'out'
    if case == 'flat':
        return good / 'a', out
    if case == 'loose':
        (good / '3.jpg').touch()
    elif case == 'single':
        (good / 'b/2.jpg').unlink()
    elif case == 'twice':
        (good / 'b/3.jpg').symlink_to('../a/1.jpg')
    elif case == 'splits':
        for old, new in (('a', 'test'), ('b', 'train')):
            (good / old).rename(good / new)
    elif case == 'file':
        out.touch()
    elif case == 'inside':
        return good, good / 'out'
    elif case == 'missing':
        return root / 'godo', out
    elif case == 'archive':
        return good / 'a/1.jpg', out
    elif case == 'share':
        return good, out, '--share', '1'
    elif case == 'seed':
        return good, out, '--seed', '-1'
    return good, out


@pytest.mark.parametrize(
    'case, message',
    [
        ('flat', 'good/a has no class folders; .*holds 1.jpg, 2.jpg'),
        ('loose', '1 image outside class folders, such as 3.jpg'),
        ('single', '1 class has only one image in .*good, .*: b; add images there'),
        ('twice', 'a/1.jpg and .*b/3.jpg are the same file'),
        ('splits', 'are splits, not classes: test, train; split the training images, such as .*good/train'),
        ('file', 'out is a file: give a folder'),
        ('inside', 'good/out is inside SOURCE .*good, where it would count as a class'),
        ('missing', 'godo does not exist; .* holds good'),
        ('archive', '1.jpg is a file, not a folder'),
        ('share', 'share=1.0 must lie between 0 and 1'),
        ('seed', 'seed=-1 must be a whole number'),
    ],
)
def test_what_cannot_be_divided_is_refused(case, message, tmp_path, capsys):
    args = prepare(case, tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert call(*args) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert sorted(tmp_path.rglob('*')) == before
